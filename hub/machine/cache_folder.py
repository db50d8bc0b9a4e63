"""Where graft keeps what it can fetch or compute again: bases, downloads, measurements. Torch-free."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$GRAFT_CACHE, else graft's folder in the user's cache. It need not exist yet; nobody's work is only there."""
    if own := os.environ.get("GRAFT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft"
