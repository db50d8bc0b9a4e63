"""The rows of a comparison that is not finished, beside its folder: OUT.training/METHOD.json, each written whole.

They are taken by a comparison of the same, and by no other.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from graft.hub.base.wanted_base import WantedBase
from graft.hub.errors import GraftError
from graft.hub.evaluation.task_data import data_hash, load_examples
from graft.hub.machine.atomic_files import write_whole
from graft.trainer.plan.config import RunConfig
from graft.trainer.plan.plan import AdapterPlan, training_folder
from graft.trainer.reports.comparison import BARE, Bare, Measured

Row = TypeVar("Row", Bare, Measured)


def asked_of(template: AdapterPlan, run: RunConfig, loaded: WantedBase, *, together: bool) -> dict[str, object]:
    """What has to be the same for a row to hold: graft, the base as it computes, the data, the recipe. Raises DataError."""
    assert template.eval_data is not None  # a comparison has some
    files = {"data": template.data, "eval_data": template.eval_data}
    hashes = {key: data_hash(load_examples(path)) for key, path in files.items()}
    base = {
        "base": loaded.fingerprint,
        "dtype": loaded.dtype,
        "device": loaded.device,
        "chat_template": loaded.chat_template,
    }
    shared = {key: value for key, value in asdict(run).items() if key not in base}
    told = {"graft": version("grafthub"), "task": template.task, "together": together}
    return told | hashes | base | shared | asdict(template.recipe)


def drop_journal(out: Path) -> None:
    """The table is written."""
    shutil.rmtree(training_folder(out), ignore_errors=True)


class FolderJournal:
    """A Journal on disk."""

    def __init__(self, out: Path, asked: Mapping[str, object]):
        self._folder = training_folder(out)
        self._asked = json.loads(json.dumps(asked))

    def bare(self) -> Bare | None:
        return self._read(BARE, _KeptBare)

    def method(self, name: str) -> Measured | None:
        return self._read(name, _KeptMethod)

    def keep_bare(self, bare: Bare) -> None:
        self._write(BARE, bare)

    def keep(self, measured: Measured) -> None:
        """A row with a score; what failed is to be tried again."""
        if measured.line.score is not None:
            self._write(measured.line.method, measured)

    def _read(self, name: str, kind: type["_Kept[Row]"]) -> Row | None:
        """None where there is none that can be read. Raises GraftError for a row of another comparison."""
        try:
            kept = TypeAdapter(kind).validate_json((self._folder / f"{name}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        if other := sorted(key for key in self._asked if self._asked[key] != kept.asked.get(key)):
            raise GraftError(
                f"{self._folder} holds rows that were measured with another {other[0]} ({kept.asked.get(other[0])!r}, now "
                f"{self._asked[other[0]]!r}). Compare with the same, or remove that folder."
            )
        return kept.row

    def _write(self, name: str, row: Bare | Measured) -> None:
        """Raises GraftError for a full disk."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / f"{name}.json", json.dumps({"asked": self._asked, "row": asdict(row)}))
        except OSError as error:
            raise GraftError(f"{self._folder} can't be written ({error.strerror}). Make room there.") from None


@dataclass(frozen=True)
class _Kept(Generic[Row]):
    """A file: a row, and what was asked."""

    asked: dict[str, object]
    row: Row


_KeptBare, _KeptMethod = _Kept[Bare], _Kept[Measured]
