"""A part of a file as an answer, handed to the HTTP server as a file.

werkzeug would read it out piece by piece on the request's thread, at the pace of a client that may never read.
"""

import io
from pathlib import Path

from flask import Response, request
from werkzeug.wsgi import wrap_file


class FilePiece(io.FileIO):
    """The bytes from `start` up to `stop` of a file, for a server that measures it by seeking or reads it to its end."""

    def __init__(self, path: Path, start: int, stop: int):
        super().__init__(path)
        self._stop = stop
        self.seek(start)

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._stop - self.tell()
        return super().read(left if size is None or size < 0 else min(left, size)) or b""


def hand_over(response: Response, path: Path) -> None:
    """Let an answer with a part of the file at `path` be read by the server, not by the request's thread."""
    part = response.content_range
    response.close()
    response.response = wrap_file(request.environ, FilePiece(path, part.start or 0, part.stop or 0))
