"""A sequence as the scheduler knows it, and what of it goes into a step. Pure."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graft.server.adapters.readiness import NO_ROWS, VirtualRows
from graft.server.cache.blocks import chain_hashes, root_hash
from graft.server.cache.step import BLOCK_ROWS, Run, blocks_for

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class SequenceState:
    """Tokens whose keys and values are to be computed, and where they are."""

    owner: str | None  # an adapter's digest, None for the bare base
    tokens: list[int]
    max_new: int
    logits_from: int  # first token whose logits are (still) wanted
    virtual: VirtualRows = NO_ROWS
    client: Hashable = ""  # for whom: who is served in turn
    weight: float = 1.0  # the client's
    priority: int = 0  # among the client's own: lower ones start first
    awaits: str | None = None  # the digest of an adapter that has to be in place before it starts
    steps_aside: bool = False  # nobody's own: while others decode it takes no more rows of a step than they do
    runs_last: bool = False  # the last token too where no new one is wanted: what follows it is asked about
    hidden: bool = False  # what is wanted of tokens from `logits_from` on are hidden states, not logits
    inputs: "Tensor | None" = None  # rows [P, H] in place of tokens: an adapter's soft prompt on its way into the cache
    blocks: list[int] = field(default_factory=list)  # its own, after the shared ones of `virtual`
    computed: int = 0
    _hashes: list[bytes] = field(default_factory=list)
    _published: int = 0

    @property
    def known(self) -> int:
        """Tokens whose ids are known: not the last one while the step that draws it is under way."""
        return len(self.tokens) - (bool(self.tokens) and self.tokens[-1] < 0)

    def foresee(self, draw: int) -> None:
        """The next token will be what the step under way draws as its `draw`-th: below 0, it names that until `take`."""
        self.tokens.append(-1 - draw)

    def take(self, token: int) -> None:
        """The next token has been drawn, foreseen or not."""
        if self.known < len(self.tokens):
            self.tokens[-1] = token
        else:
            self.tokens.append(token)

    @property
    def needed(self) -> int:
        """Tokens to compute before the next one can be drawn (or, if none is wanted, before all is known)."""
        return len(self.tokens) - (self.max_new == 0 and self.inputs is None and not self.runs_last)

    @property
    def remaining(self) -> int:
        return self.needed - self.computed

    @property
    def cost(self) -> int:
        return len(self.tokens) + self.max_new

    @property
    def table(self) -> list[int]:
        return [*self.virtual.whole, *self.blocks]

    def blocks_for(self, tokens: int) -> int:
        """How many own blocks the first `tokens` tokens need."""
        return blocks_for(self.virtual.count % BLOCK_ROWS + tokens)

    def hashes(self, tokens: int) -> Sequence[bytes]:
        """Chain hashes of the own blocks that the first `tokens` tokens fill."""
        first = BLOCK_ROWS - self.virtual.count % BLOCK_ROWS
        ends = range(first + BLOCK_ROWS * len(self._hashes), tokens + 1, BLOCK_ROWS)
        if ends:
            start = max(0, ends[0] - BLOCK_ROWS)
            parent = self._hashes[-1] if self._hashes else root_hash(self.owner)
            self._hashes += chain_hashes(parent, self.tokens[start : ends[-1]], [end - start for end in ends])
        return self._hashes[: max(0, (tokens - first) // BLOCK_ROWS + 1)]


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a sequence from `start` on; the last `logits` of them want logits, or hidden states."""

    sequence: SequenceState
    start: int
    count: int
    logits: int

    def run(self) -> Run:
        """The chunk as a runner takes it; its owner is set when the batch is sorted."""
        own, stop = self.sequence, self.start + self.count
        return Run(
            owner=0,
            tokens=() if own.inputs is not None else own.tokens[self.start : stop],
            start=own.virtual.count + self.start,
            position=own.virtual.text_start + self.start,
            blocks=own.table,
            logits=0 if own.hidden else self.logits,
            virtual=None if own.inputs is None else own.inputs[self.start : stop],
            hidden=self.logits if own.hidden else 0,
        )


@dataclass
class StepPlan:
    """One step. `copies` are partial blocks to copy first; `published` blocks become findable with this step."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    rows: int = 0

    @property
    def has_prompts(self) -> bool:
        """Whether anybody has more rows in it than the one of a next token."""
        return self.rows > len(self.chunks)
