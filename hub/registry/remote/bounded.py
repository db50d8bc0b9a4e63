"""What the Hugging Face client reads while it uploads, held to the bounds of our own reading: it takes any answer whole, and follows
pages of a list for as long as there are any."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import Response
from huggingface_hub.utils import get_session

from graft.hub.errors import TooLargeError, UnreachableError
from graft.hub.registry.remote import api
from graft.hub.registry.remote.answers import LOOK_ELSEWHERE

MOST_ANSWERS = 10_000  # of one upload: a few for each file of a folder, and one for each 64 MiB of its weights
Pieces = Callable[..., Iterator[bytes]]


@contextmanager
def bounded_answers() -> Iterator[None]:
    """Within the context every answer to the client, which has one session a process, has at most api.MAX_ANSWER_BYTES and comes
    within api.TIMEOUT_S, and no more than MOST_ANSWERS come. Raises TooLargeError and UnreachableError."""
    session, came = get_session(), 0
    before = session.event_hooks

    def bound(response: Response) -> None:
        nonlocal came
        came += 1
        if came > MOST_ANSWERS:
            raise TooLargeError(f"{response.url} gives answer {came:,} to one upload: {LOOK_ELSEWHERE}")
        vars(response).update(iter_bytes=_bounded(response))  # by which `read` reads it

    session.event_hooks = {**before, "response": [*before["response"], bound]}
    try:
        yield
    finally:
        session.event_hooks = before


def _bounded(response: Response) -> Pieces:
    whole: Pieces = response.iter_bytes

    def pieces(chunk_size: int | None = None) -> Iterator[bytes]:
        read, until = 0, time.monotonic() + api.TIMEOUT_S
        for piece in whole(chunk_size):
            read += len(piece)
            if read > api.MAX_ANSWER_BYTES:
                raise TooLargeError(f"{response.url} sends more than {api.MAX_ANSWER_BYTES:,} bytes: {LOOK_ELSEWHERE}")
            if time.monotonic() > until:
                raise UnreachableError(f"{response.url} does not come to an end: try again later.")
            yield piece

    return pieces
