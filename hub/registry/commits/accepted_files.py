"""What may be a file in a repo at all, decided before a byte is stored.

An adapter is tensors and text, so nothing that a reader could unpickle, unpack or execute gets in.
"""

from pathlib import PurePosixPath

from graft.hub.errors import ArtifactError, TooLargeError

MAX_WEIGHTS_BYTES = 8 << 30  # of one file of weights, unless a registry is opened with another limit
MAX_FILE_BYTES = 100 << 20  # of any other
MAX_TREE_FILES = 1000
MAX_PATH_CHARS = 250
WEIGHTS_SUFFIX = ".safetensors"
START_BYTES = 16  # what `check_start` looks at
SUFFIXES = frozenset(
    [
        WEIGHTS_SUFFIX,
        ".json",
        ".jsonl",
        ".md",
        ".txt",
        ".yaml",
        ".yml",
        ".toml",
        ".csv",
        ".tsv",
        ".jinja",
        ".model",
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".webp",
    ]
)
PLAIN_NAMES = frozenset((".gitattributes", ".gitignore", "LICENSE", "NOTICE", "CITATION.cff"))
HOSTILE_STARTS = (
    (b"PK\x03\x04", "a zip archive (PyTorch's pickled weights look like this)"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a script"),
    (b"\x89HDF", "an HDF5 file"),
)


def check_path(path: str) -> None:
    """Raises ArtifactError for a path that could leave its folder, or a kind of file an adapter never needs."""
    parts = path.split("/")
    if not path or len(path) > MAX_PATH_CHARS or any(part in ("", ".", "..", ".git") for part in parts):
        raise ArtifactError(f"{path!r} is no path for a file in a repo: use a relative one without '..'.")
    if "\\" in path or not path.isprintable():
        raise ArtifactError(f"{path!r} holds a backslash or an unprintable character: rename the file.")
    name = PurePosixPath(path)
    if name.suffix.lower() not in SUFFIXES and name.name not in PLAIN_NAMES:
        raise ArtifactError(
            f"{path} can't be published: weights must be .safetensors, the rest text or pictures "
            f"({' '.join(sorted(SUFFIXES))}). Pickled files can run code where they are loaded; "
            "convert them with safetensors.torch.save_file, and leave training leftovers out."
        )


def check_start(path: str, start: bytes) -> None:
    """Raises ArtifactError when a file's first bytes say that it is not what its name says."""
    for magic, what in HOSTILE_STARTS:
        if start.startswith(magic):
            raise ArtifactError(f"{path} is {what}: publish safetensors and text only.")


def check_size(path: str, size: int, max_weights: int = MAX_WEIGHTS_BYTES) -> None:
    """Raises TooLargeError for weights beyond `max_weights`, or any other file beyond MAX_FILE_BYTES."""
    if path.endswith(WEIGHTS_SUFFIX):
        if size > max_weights:
            raise TooLargeError(
                f"{path} has {size:,} bytes and at most {max_weights:,} of weights are taken: an adapter is much smaller "
                "than its base, so publish only the adapter's own tensors. Where it is one, raise the limit with "
                "--max-weights-bytes, of `graft publish` or of the hub."
            )
    elif size > MAX_FILE_BYTES:
        raise TooLargeError(f"{path} has {size:,} bytes and {MAX_FILE_BYTES:,} are taken of a file without weights.")
