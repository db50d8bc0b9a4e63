"""What the demo tells: which adapters it trains on which tasks, and what it asks them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from graft.hub.base.named_bases import NAMED_BASES
from graft.hub.demo.data import HEADLINES, SENTIMENT, TOPICS, DataSize, DemoTask

BASE = NAMED_BASES["smollm2"]
NAMESPACE = "demo"


@dataclass(frozen=True)
class DemoAdapter:
    """One adapter of the demo: its name says method and task."""

    method: str
    task: DemoTask
    settings: str = ""  # inline TOML of the method's options
    learning_rate: float = field(kw_only=True)

    @property
    def name(self) -> str:
        return f"{self.task.slug}-{self.method}"

    @property
    def repo(self) -> str:
        return f"{NAMESPACE}/{self.name}"


@dataclass(frozen=True)
class Story:
    """A demo: its adapters, and how much data each task gets."""

    entries: tuple[DemoAdapter, ...]
    sizes: Mapping[DemoTask, DataSize]

    @property
    def tasks(self) -> tuple[DemoTask, ...]:
        return tuple(self.sizes)

    @property
    def main(self) -> DemoTask:
        """The task whose best adapter is promoted."""
        return self.tasks[0]


_SEEN = 400  # rates and sizes were chosen on examples among these: what is shown is trained and scored on others

# All three places: input (prefix, prompt), sublayer (series, parallel), weights (LoRA); and biases. Little data, so rates
# are up to twice the methods' own; half of it where the base knows much of the task.
WHOLE = Story(
    entries=(
        DemoAdapter("lora", TOPICS, learning_rate=1e-3),
        DemoAdapter("series", TOPICS, learning_rate=2e-3),
        DemoAdapter("parallel", TOPICS, learning_rate=1e-3),
        DemoAdapter("prefix", TOPICS, learning_rate=1e-2),
        DemoAdapter("prompt", TOPICS, learning_rate=2e-2),
        DemoAdapter("lora", SENTIMENT, learning_rate=5e-4),
        DemoAdapter("bitfit", SENTIMENT, learning_rate=5e-4),
        DemoAdapter("lora", HEADLINES, learning_rate=1e-3),
    ),
    sizes={
        TOPICS: DataSize(112, 80, words=20, skip=_SEEN),
        SENTIMENT: DataSize(128, 80, skip=_SEEN),
        HEADLINES: DataSize(80, 16, words=20, skip=_SEEN),
    },
)
SHORT = Story(
    entries=(WHOLE.entries[0], WHOLE.entries[2], WHOLE.entries[3]),  # one of each place
    sizes={TOPICS: DataSize(48, 40, words=20)},
)

# What the mixed batch asks, a prompt a task, none of it in the training data.
QUESTIONS = {
    TOPICS: "Article: Chipmaker unveils a faster phone processor. The company said its new chip doubles battery life "
    "and runs neural networks on the device.\nTopic:",
    SENTIMENT: "Review: A warm, funny film with a wonderful cast.\nSentiment:",
    HEADLINES: "Article: The central bank has cut interest rates for the first time in two years, citing weak growth "
    "and falling inflation.\nHeadline:",
}
ANSWER_TOKENS = {TOPICS: 2, SENTIMENT: 2, HEADLINES: 14}
