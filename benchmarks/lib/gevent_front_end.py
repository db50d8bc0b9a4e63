"""A front end (server/commands/front_end.py) by gunicorn and gevent instead: the way that was measured beside graft's own.

Both are to be had on sys.path, and are no packages of graft's: `pip install --target DIR gunicorn gevent`, PYTHONPATH=DIR.
"""

from gevent import monkey

monkey.patch_all()

import socket
import sys
import threading

from gunicorn.app.base import BaseApplication

from graft.server.front_ends.frames import Start, read_frames
from graft.server.front_ends.remote_client import RemoteClient
from graft.server.operations.drain import Drain


class FrontEnd(BaseApplication):
    """One worker, which reads the channel to the engine's process."""

    def __init__(self, channel: int, listening: int):
        self._channel, self._listening = channel, listening
        super().__init__()

    def load_config(self) -> None:
        self.cfg.set("bind", f"fd://{self._listening}")
        self.cfg.set("worker_class", "gevent")
        self.cfg.set("worker_connections", 2000)
        self.cfg.set("workers", 1)

    def load(self):
        sock = socket.socket(fileno=self._channel)
        file = sock.makefile("rb")
        start = next(read_frames(file))
        assert isinstance(start, Start)
        client = RemoteClient(sock, file, start)
        threading.Thread(target=client.run, args=(lambda seconds: None,), daemon=True).start()
        client.ready()
        return start.make_app(client, client, Drain())


if __name__ == "__main__":
    FrontEnd(int(sys.argv[1]), int(sys.argv[2])).run()
