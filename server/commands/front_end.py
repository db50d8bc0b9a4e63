"""A process that speaks HTTP for an engine in another process: `python -m` this, as front_ends/supervisor.py does. Torch-free.

Its arguments are file descriptors that it has inherited: of its end of the socket pair, and of the sockets to listen on. It ends
when the engine's process does, or when that says so; until then it tells its clients why. When that drains, it drains.
"""

import logging
import os
import socket
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from graft.hub.machine.interpreter import hand_on_soon, keep_what_is_there
from graft.server.commands.http_server import draining, http_server
from graft.server.commands.log_lines import begin_logging
from graft.server.errors import ClosedError
from graft.server.front_ends.frames import Start, read_frames
from graft.server.front_ends.remote_client import RemoteClient
from graft.server.operations.drain import Drain
from graft.server.operations.spans import begin_spans

if TYPE_CHECKING:
    from waitress.server import BaseWSGIServer, MultiSocketServer

LAST_WORDS_S = 1.0  # after the engine's end: streams get their error, and /health can be asked
CLOSE_S = 5.0  # for answers under way when the server is closed, all of which have been told
LOOK_S = 0.05


def main(channel: int, listening: list[int]) -> None:
    hand_on_soon()
    sock = socket.socket(fileno=channel)
    file = sock.makefile("rb")
    start = next(read_frames(file), None)
    if not isinstance(start, Start):  # the engine's process has gone before it began
        return
    begin_logging(as_json=start.log_as_json)
    begin_spans()
    client = RemoteClient(sock, file, start)
    sockets = [socket.socket(fileno=number) for number in listening]
    drain, kept = Drain(), dict[int, object]()
    app = start.make_app(client, client, drain)
    server = http_server(app, sockets, start.max_requests, kept, lambda: drain.begun)
    # Only now: what it may be told first is to drain, which needs a server.
    begin_drain = partial(drain.begin, server=draining(kept), done=client.drained)
    threading.Thread(target=client.run, args=(begin_drain,), name="graft-engine-reader", daemon=True).start()
    threading.Thread(target=_end, args=(client, server), name="graft-ending", daemon=True).start()
    keep_what_is_there()
    client.ready()
    server.run()


def _end(client: RemoteClient, server: "BaseWSGIServer | MultiSocketServer") -> None:
    """End this process when the engine has ended and everybody has been told. waitress runs in the main thread until then."""
    client.ended.wait()
    if not isinstance(client.reason, ClosedError):
        time.sleep(LAST_WORDS_S)
        os._exit(1)
    until = time.monotonic() + CLOSE_S
    while server.task_dispatcher.active_count and time.monotonic() < until:
        time.sleep(LOOK_S)
    time.sleep(LOOK_S)  # what was written last leaves the buffers
    logging.shutdown()  # and spans their queue
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(number) for number in sys.argv[2:]])
