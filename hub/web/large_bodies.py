"""Who may send more than a small body, asked while its first bytes arrive: a server reads bodies whole before a view runs."""

import sqlite3
from dataclasses import dataclass

from flask import Flask, request

from graft.hub.errors import GraftError
from graft.hub.registry.access.permissions import SCOPES, Right
from graft.hub.registry.access.quotas import read_quota
from graft.hub.web.huggingface.git_lfs import permitted_upload
from graft.hub.web.request import caller, registry


@dataclass(frozen=True)
class Sender:
    """`most`: bytes that all of their bodies on the way may have; None: no limit."""

    name: str
    most: int | None


def admit_large_body(app: Flask, path: str, query: str, authorization: str) -> Sender | None:
    """Who sends a request with this head, somebody who may write or has a link that permits an upload; None for others, and
    where the registry can't be asked. It runs on the thread that all sockets share, so nothing may be raised there."""
    with app.test_request_context(path, query_string=query, headers={"Authorization": authorization}):
        try:
            if (given := permitted_upload(request.path)) is not None:
                return Sender(given.who, read_quota(registry().db, given.who).bytes)
            me = caller()
            return Sender(me.name, me.quota.bytes) if Right.WRITE in SCOPES.get(me.scope or "", ()) else None
        except (GraftError, sqlite3.Error, OSError):
            return None
