"""An application that can be asked about its process: what a front end of the tests is told to serve."""

import gc
import logging
import os
import sys

from flask import Flask, jsonify

from graft.server.http.app import create_app


def make_looking(engine, places, drain, **options) -> Flask:
    app = create_app(engine, places, drain, **options)

    @app.get("/look")
    def look():
        told = [
            name for name in ("httpx", "waitress", "graft.server") if logging.getLogger(name).isEnabledFor(logging.INFO)
        ]
        frozen = gc.get_freeze_count() / (gc.get_freeze_count() + len(gc.get_objects()))
        modules = sorted(name for name in sys.modules if "." not in name)
        return jsonify(pid=os.getpid(), told=told, modules=modules, frozen=frozen)

    return app
