"""An adapter in host memory."""

from dataclasses import dataclass, field
from functools import cached_property

from graft.hub.adapters.probe import ProofOutcome
from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows, LowRank
from graft.hub.chat.words import NO_WORDS, AdapterWords
from graft.server.adapters.prover import Case
from graft.server.cache.step import blocks_for


@dataclass(eq=False)
class Loaded:
    """An adapter in host memory, in the base's dtype. `users`: requests that hold it, and its way to the device.

    `bytes`: of its forms; `device_bytes`: of what the runner makes of them. `cases`: of copies of it that bring other
    probes. Whoever copies an adapter can bring a wrong one, and must not get the original refused: it is refused only
    where no probe holds.
    """

    digest: str
    method: str
    variant: str
    detours: tuple[Form, ...]
    rows: InputRows | CacheRows | None
    case: Case  # its proof
    bytes: int
    device_bytes: int
    seconds: float  # what the load took
    words: AdapterWords = NO_WORDS  # of the folder that it was read from
    cases: list[Case] = field(default_factory=list)
    users: int = 0

    @property
    def host_bytes(self) -> int:
        """All that it takes in host memory: its forms, and what is kept in float32 until it is proven."""
        return self.bytes + self.case.bytes + sum(case.bytes for case in self.cases)

    @property
    def refused(self) -> bool:
        """Whether none of its probes held."""
        return self.case.verdict is not None and self.case.verdict.outcome is ProofOutcome.REFUSED

    @cached_property
    def rank(self) -> int:
        """The largest of its low-rank detours; 0 where it has none."""
        return max((form.A.shape[0] for form in self.detours if isinstance(form, LowRank)), default=0)

    @property
    def virtual_rows(self) -> int:
        if isinstance(self.rows, InputRows):
            return self.rows.rows.shape[0]
        return 0 if self.rows is None else self.rows.keys.shape[1]

    @property
    def virtual_blocks(self) -> int:
        """Cache blocks that its virtual rows take."""
        return blocks_for(self.virtual_rows)
