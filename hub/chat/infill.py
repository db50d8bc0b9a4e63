"""Filling in the middle: a prompt and what follows the gap as one text, for bases that were trained to (Bavarian et al. 2022).

Which tokens mark the parts is a base's own: a line here for each way, known by the tokens that a vocabulary has.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class InfillFormat:
    """`first`, a part, `second`, the other part, `third`: what the text begins with, is parted by and ends with. The model
    goes on with what belongs between. `prompt_first`: whether the first part is the prompt, or the suffix."""

    families: str
    first: str
    second: str
    third: str = ""
    prompt_first: bool = True

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.first, self.second, self.third)))

    def join(self, prompt: str, suffix: str) -> str:
        """The text that asks for what is between a prompt and a suffix."""
        before, after = (prompt, suffix) if self.prompt_first else (suffix, prompt)
        return f"{self.first}{before}{self.second}{after}{self.third}"


_FORMATS = (
    InfillFormat("Qwen 2.5 (Coder), CodeGemma", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    InfillFormat("StarCoder, Granite Code, StableCode", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    InfillFormat("SantaCoder", "<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    InfillFormat("DeepSeek Coder", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    InfillFormat("Codestral", "[SUFFIX]", "[PREFIX]", prompt_first=False),
)
# With these too a model says that the middle is complete, or begins another file.
_ENDS = (
    "<|fim_pad|>",
    "<|file_sep|>",
    "<|file_separator|>",
    "<|repo_name|>",
    "<|endoftext|>",
    "<fim_pad>",
    "<file_sep>",
)


def find_format(special: Collection[str]) -> InfillFormat | None:
    """The way of a base with these special tokens; None where it knows none."""
    return next((one for one in _FORMATS if all(mark in special for mark in one.marks)), None)


def infill_ends(special: Mapping[str, int], way: InfillFormat) -> tuple[int, ...]:
    """Ids that end a middle. `special`: a base's special tokens."""
    return tuple(special[token] for token in (*way.marks, *_ENDS) if token in special)
