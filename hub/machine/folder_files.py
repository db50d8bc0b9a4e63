"""A folder's files as bytes, to be sent where no disk is shared."""

from pathlib import Path

Files = dict[str, bytes]  # path inside the folder -> content


def read_files(folder: Path) -> Files:
    """All files of a folder; none where there is no folder. Raises OSError."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_files(files: Files, folder: Path) -> None:
    """Lay them out in a folder, which is made. Raises OSError."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
