"""What the demo's folder remembers between runs: with which settings it was made, and which adapters were refused."""

import json
import shutil
from pathlib import Path

from graft.hub.demo.story import DemoAdapter
from graft.hub.errors import GraftError
from graft.hub.machine.atomic_files import write_whole


class Notebook:
    """The demo's folder. Adapters that were refused are trained again by the next run."""

    def __init__(self, folder: Path, settings: dict):
        """Raises GraftError for a folder that can't be written, or that was made with other settings."""
        self.folder = folder
        self._settings, self._refused = folder / "settings.json", folder / "refused.json"
        try:
            (folder / "adapters").mkdir(parents=True, exist_ok=True)
            known = json.loads(self._settings.read_text()) if self._settings.exists() else settings
            write_whole(self._settings, json.dumps(known))
        except OSError as error:
            raise GraftError(f"{folder} can't be used ({error.strerror}): choose another --folder.") from None
        if known != settings:
            said = ", ".join(f"{key} {value}" for key, value in known.items())
            raise GraftError(f"{folder} was made with other settings ({said}): choose another --folder, or remove it.")

    @property
    def registry(self) -> Path:
        return self.folder / "registry.db"

    def adapter(self, entry: DemoAdapter) -> Path:
        return self.folder / "adapters" / entry.name

    def places(self, entry: DemoAdapter) -> tuple[Path, Path]:
        """Its folder, and that of its interrupted training."""
        folder = self.adapter(entry)
        return folder, folder.with_name(f"{folder.name}.training")

    def is_trained(self, entry: DemoAdapter) -> bool:
        return (self.adapter(entry) / "graft.json").exists()

    def data(self, slug: str, part: str) -> Path:
        return self.folder / "data" / f"{slug}.{part}.jsonl"

    def refusals(self) -> dict[str, str]:
        """Why, by the adapter's name in the registry."""
        return json.loads(self._refused.read_text()) if self._refused.exists() else {}

    def note_refusals(self, refused: dict[str, str]) -> None:
        write_whole(self._refused, json.dumps(refused, indent=2))

    def forget_refusals(self, entries: tuple[DemoAdapter, ...]) -> list[DemoAdapter]:
        """Remove the folders of those that were refused, so that they are trained again; returns them."""
        refused = self.refusals()
        again = [entry for entry in entries if entry.repo in refused]
        for place in (place for entry in again for place in self.places(entry)):
            shutil.rmtree(place, ignore_errors=True)
        return again
