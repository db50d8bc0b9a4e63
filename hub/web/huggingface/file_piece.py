"""A part of a file as an answer, handed to the HTTP server as a file.

werkzeug would read it out piece by piece on the request's thread, at the pace of a client that may never read.
"""

from pathlib import Path

from flask import Response, request
from werkzeug.wsgi import wrap_file


class FilePiece:
    """The bytes from `start` up to `stop` of a file, for a server that measures it by seeking or reads it to its end."""

    def __init__(self, path: Path, start: int, stop: int):
        self._file, self._stop = path.open("rb"), stop
        self._file.seek(start)

    def read(self, count: int = -1) -> bytes:
        left = self._stop - self._file.tell()
        return self._file.read(left if count < 0 else min(left, count))

    def seek(self, at: int, whence: int = 0) -> int:
        return self._file.seek(at, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def hand_over(response: Response, path: Path) -> None:
    """Let an answer with a part of the file at `path` be read by the server, not by the request's thread."""
    part = response.content_range
    response.close()
    piece = FilePiece(path, part.start or 0, part.stop or 0)
    response.response = wrap_file(request.environ, piece)  # type: ignore[arg-type]  # it reads as a file does
