"""The body of a commit: one JSON object a line, a file's bytes as base64 in it, read so that no large file is in memory.

Knows neither repos nor what the keys mean. A line's `content`, where it is long, goes to a temporary file as it comes.
"""

import binascii
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

import pybase64

from graft.hub.adapters.validation import strict_json
from graft.hub.errors import GraftError, TooLargeError

HEAD_BYTES = 1 << 20  # a line up to here is read as a whole
MAX_LINES = 5000
# Within a JSON string every quote has a backslash before it, so this is a key and nothing else.
CONTENT = re.compile(rb'"content"\s*:\s*"')


def lines(stream: BinaryIO, limit: int, folder: Path) -> Iterator[tuple[str, dict[str, object], IO[bytes] | None]]:
    """(key, value, content) of each line; `content` None where it stands in the value, else a file of base64.

    A content may have `limit` characters; temporary files lie in `folder`, each until the next line is asked for.
    Raises GraftError for a line that is no JSON object with key and value, TooLargeError beyond the limits.
    """
    for number in range(1, MAX_LINES + 2):
        head = stream.readline(HEAD_BYTES)
        if not head:
            return
        if head.isspace():
            continue
        if head.endswith(b"\n") or len(head) < HEAD_BYTES:
            yield *_parse(head, number), None
            continue
        with tempfile.TemporaryFile(dir=folder) as content:
            yield *_parse(_move_content_out(head, stream, content, limit, number), number), content
    raise TooLargeError(f"A commit may have at most {MAX_LINES} lines.")


def _move_content_out(head: bytes, stream: BinaryIO, content: IO[bytes], limit: int, number: int) -> bytes:
    """A long line with its content moved to the file."""
    match = CONTENT.search(head)
    if match is None:
        raise TooLargeError(f"Line {number} of the commit is longer than {HEAD_BYTES:,} bytes, and not by its content.")
    piece, end = head[match.end() :], -1
    while piece and (end := piece.find(b'"')) < 0:
        if content.tell() + len(piece) > limit:
            raise TooLargeError(f"Line {number} of the commit has a content of more than {limit:,} characters.")
        content.write(piece)
        piece = stream.readline(HEAD_BYTES)
    content.write(piece[: max(end, 0)])
    rest = piece[max(end, 0) :]
    return head[: match.end()] + (rest if rest.endswith(b"\n") else rest + stream.readline(HEAD_BYTES))


def _parse(line: bytes, number: int) -> tuple[str, dict[str, object]]:
    try:
        fields = strict_json(line.decode())
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not {"key", "value"} <= fields.keys():
        raise GraftError(f"Line {number} of the commit is not a JSON object with 'key' and 'value'.")
    key, value = fields["key"], fields["value"]
    if not isinstance(key, str) or not isinstance(value, dict):
        raise GraftError(f"Line {number} of the commit: 'key' must be a string and 'value' an object.")
    return key, value


class Base64:
    """The bytes that a file of base64 stands for, read in pieces. `size`: how many they are.

    Raises binascii.Error for what is no base64.
    """

    def __init__(self, text: IO[bytes]):
        self._text = text
        length = text.seek(0, 2)
        if length % 4:
            raise binascii.Error("base64 comes in fours")
        text.seek(max(length - 2, 0))
        self.size = length // 4 * 3 - text.read().count(b"=")
        text.seek(0)

    def read(self, count: int) -> bytes:
        """About `count` bytes; none at the end."""
        return pybase64.b64decode(self._text.read(max(count // 3, 1) * 4), validate=True)

    def seek(self, at: int) -> None:
        """To the start, which is the only place to go."""
        self._text.seek(at)
