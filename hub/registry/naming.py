"""What repos, refs and tasks may be called."""

import re

from graft.hub.errors import GraftError

REPO_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
REF_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,98}[A-Za-z0-9_-])?")
# First parts of the hub's own addresses.
RESERVED = frozenset(
    [
        "api",
        "tasks",
        "compare",
        "publish",
        "playground",
        "signin",
        "signout",
        "static",
        "lfs",
        "health",
        "index.json",
        "openapi.json",
    ]
)
SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")  # of a task
PRODUCTION = "production"  # the alias that `task:T` follows
MAIN = "main"  # every repo's first branch, and the one that is listed
HEAD = "HEAD"  # what git, and some clients, call it
COMMIT_ID = re.compile(r"[0-9a-f]{40}")


def check_repo_name(name: str) -> tuple[str, str]:
    """'ns/name' -> (ns, name). Raises GraftError where it isn't of that form."""
    namespace, slash, short = name.partition("/")
    if not slash or not all(
        REPO_NAME.fullmatch(part) and ".." not in part and "--" not in part for part in (namespace, short)
    ):
        raise GraftError(
            f"{name!r} is no adapter name: write NAMESPACE/NAME, letters, digits, '.', '_' and '-', "
            "at most 96 characters each, starting and ending with a letter or digit."
        )
    if namespace.lower() in RESERVED:
        raise GraftError(f"{namespace!r} is a part of the hub's own addresses: choose another namespace.")
    return namespace, short


def check_ref_name(name: str) -> str:
    """Raises GraftError for what can't be a branch, tag or alias (a commit id can't: it would hide the commit)."""
    if not REF_NAME.fullmatch(name) or ".." in name or "//" in name or COMMIT_ID.fullmatch(name) or name == HEAD:
        raise GraftError(f"{name!r} can't name a branch, tag or alias: use letters, digits, '.', '_', '-' and '/'.")
    return name


def branch_of(ref: str) -> str:
    """`ref`, with HEAD spelled as the branch that it stands for."""
    return MAIN if ref == HEAD else ref


def check_slug(slug: str) -> None:
    """Raises GraftError for what can't name a task."""
    if not SLUG.fullmatch(slug):
        raise GraftError(f"{slug!r} can't name a task: use small letters, digits and '-', such as 'news-topic'.")
