"""What the routes share."""

import time
from collections.abc import Sequence

from flask import current_app

from graft.server.chat.detokenizer import Names
from graft.server.chat.speech import Speeches
from graft.server.engine.client import EngineClient
from graft.server.http.clients import AnswerPlaces, Network

EXTENSION = "graft"


class Service:
    """Of one application."""

    def __init__(
        self,
        engine: EngineClient,
        base_name: str,
        max_at_once: int,
        trusted_proxies: Sequence[Network],
        tool_format: str | None,
    ):
        self.engine = engine
        self.base_name = base_name
        self.started = int(time.time())
        assert engine.base.tokenizer is not None  # text comes in and goes out
        self.names = Names(engine.base.tokenizer)
        self.speeches = Speeches(engine, base_name, tool_format)
        self.places = AnswerPlaces(max_at_once)
        self.trusted_proxies = trusted_proxies


def service() -> Service:
    return current_app.extensions[EXTENSION]
