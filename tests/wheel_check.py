"""Run by CI against the installed wheel, from another folder: every room works without the repository."""

import importlib.metadata
import importlib.resources
from pathlib import Path

import graft.hub.registry.registry
import graft.hub.web
import graft.server
import graft.trainer

for point in importlib.metadata.entry_points(group="graft.commands"):
    point.load()
templates = importlib.resources.files(graft.hub.web) / "templates"
assert any(Path(str(item)).suffix == ".html" for item in templates.iterdir()), "the wheel lacks the pages"
assert "site-packages" in graft.hub.registry.registry.__file__
print("wheel: every command loads, pages are there")
