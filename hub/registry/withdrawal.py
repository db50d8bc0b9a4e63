"""Adapters that a hub's operator withdraws: in no list, served to nobody, who asks is told why. Nothing of them is
deleted."""

from graft.hub.adapters.model_card import split_card
from graft.hub.adapters.validation import CARD
from graft.hub.errors import ConflictError, GraftError
from graft.hub.registry import queries, search
from graft.hub.registry.audit import audit
from graft.hub.registry.storage.blob_store import BlobStore
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction


def disable(db: Database, name: str, why: str, user: str) -> None:
    """Withdraw a repo, or give another reason. Raises RepoNotFoundError, GraftError without a reason."""
    if not why.strip():
        raise GraftError("Say why: whoever asks for the adapter is told.")
    with write_transaction(db):
        repo = queries.repo_even_if_disabled(db, name)
        db.execute("UPDATE repos SET disabled = ? WHERE id = ?", [why, repo.id])
        search.unlist_repo(db, repo.id)
        audit(db, user, "repo.disable", repo.name, why)


def enable(db: Database, blobs: BlobStore, name: str, user: str) -> None:
    """Take a withdrawal back. Raises RepoNotFoundError, ConflictError where there is none."""
    with write_transaction(db):
        repo = queries.repo_even_if_disabled(db, name)
        if repo.disabled is None:
            raise ConflictError(f"{repo.name} is not withdrawn.")
        db.execute("UPDATE repos SET disabled = NULL WHERE id = ?", [repo.id])
        head = queries.branch_head(db, repo, "main")
        tree = queries.tree(db, head)
        card, body = split_card(blobs.read(tree[CARD]).decode()) if CARD in tree else ({}, "")
        search.list_repo(db, repo.id, head, card, body)
        audit(db, user, "repo.enable", repo.name)
