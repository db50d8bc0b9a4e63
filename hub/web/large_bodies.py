"""Who may send more than a small body, asked while its first bytes arrive: a server reads bodies whole before a view runs."""

import sqlite3

from flask import Flask, request

from graft.hub.errors import GraftError
from graft.hub.registry.access.permissions import SCOPES, Right
from graft.hub.web.huggingface.git_lfs import is_permitted_upload
from graft.hub.web.request import caller


def admits_large_body(app: Flask, path: str, query: str, authorization: str) -> bool:
    """Whether a request with this head comes from somebody who may write, or with a link that permits an upload; not where
    the registry can't be asked. It runs on the thread that all sockets share, so nothing may be raised there."""
    with app.test_request_context(path, query_string=query, headers={"Authorization": authorization}):
        try:
            return is_permitted_upload(request.path) or Right.WRITE in SCOPES.get(caller().scope or "", ())
        except (GraftError, sqlite3.Error, OSError):
            return False
