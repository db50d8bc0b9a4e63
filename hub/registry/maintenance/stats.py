"""Counts for people who run a registry."""

from graft.hub.registry.registry import Registry

_COUNTS = {
    "adapters": "SELECT count(*) FROM listing",
    "deleted names": "SELECT count(*) FROM repos WHERE deleted_at IS NOT NULL",
    "revisions": "SELECT count(*) FROM revisions",
    "bases": "SELECT count(*) FROM bases",
    "tasks": "SELECT count(*) FROM tasks",
    "evaluations": "SELECT count(*) FROM evaluations",
    "users": "SELECT count(*) FROM users",
    "downloads": "SELECT coalesce(sum(downloads), 0) FROM repos",
    "blobs": "SELECT count(*) FROM blobs",
    "blob bytes": "SELECT coalesce(sum(size), 0) FROM blobs",
    "bytes if nothing were shared": "SELECT coalesce(sum(size), 0) FROM files JOIN blobs USING (sha256)",
}


def stats(registry: Registry) -> dict[str, int]:
    """By name."""
    numbers = {name: registry.db.execute(sql).fetchone()[0] for name, sql in _COUNTS.items()}
    return numbers | {"database bytes": registry.path.stat().st_size}
