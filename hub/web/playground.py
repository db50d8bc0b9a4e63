"""The playground: a prompt answered by adapters side by side, through an inference server."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException, HTTPResponse, IncompleteRead

from flask import Blueprint, render_template, request
from werkzeug.wrappers import Response

from graft.hub.adapters.model_card import TASK_PREFIX
from graft.hub.errors import ForbiddenError, GraftError, UnavailableError, UnreachableError
from graft.hub.registry import queries, search
from graft.hub.request_body import Body
from graft.hub.web.request import caller, hub, read_body, registry

blueprint = Blueprint("playground", __name__)
MAX_ASKED = 6
MAX_PROMPT_CHARS = 20_000
MAX_NEW_TOKENS = 512
USUAL_TOKENS = 48
INFERENCE_TIMEOUT_S = 120
EVENT_BYTES = 4096


class Question(Body):
    """POST /playground/stream"""

    model: str
    prompt: str = ""
    max_tokens: int | str = USUAL_TOKENS


@blueprint.get("/playground")
def page() -> str:
    return _playground([])


@blueprint.post("/playground")
def answer_all() -> str:
    """The way without JavaScript: all answers, when all are there."""
    names = request.form.getlist("model")[:MAX_ASKED]
    prompt, tokens = request.form.get("prompt", ""), request.form.get("max_tokens") or str(USUAL_TOKENS)
    return _playground([(name, _answer(_completion_request(name, prompt, tokens, stream=False))) for name in names])


def _playground(answers: list[tuple[str, str]]) -> str:
    """Adapters of one base, since one server has one base."""
    bases = [base for base, _ in search.facets(registry().db, search.Query(), caller())["base"] if base]
    base = request.values.get("base") or (bases[0] if bases else "")
    entries = registry().search(search.Query(base=base, sort="name", limit=200), caller()).entries if base else ()
    return render_template(
        "playground.html",
        bases=bases,
        base=base,
        adapters=[entry for entry in entries if entry.digest],
        chosen=request.values.getlist("model"),
        prompt=request.values.get("prompt", ""),
        answers=answers,
        most=MAX_ASKED,
    )


@blueprint.post("/playground/stream")
def stream() -> Response:
    """One model's answer as it comes, passed on from the inference server so that pages talk to one origin only."""
    asked = read_body(Question)
    wanted = _completion_request(asked.model, asked.prompt, str(asked.max_tokens), stream=True)
    turn = ExitStack()
    turn.enter_context(_turn())
    try:
        upstream = turn.enter_context(_open(wanted))
    except BaseException:
        turn.close()
        raise

    def events() -> Iterator[bytes]:
        try:
            while chunk := upstream.read1(EVENT_BYTES):
                yield chunk
            if upstream.length:  # read1 takes an early end for the end
                raise IncompleteRead(b"", upstream.length)
        except (OSError, HTTPException) as error:
            message = f"The inference server stopped in the middle of its answer ({_reason(error)})."
            yield b"data: " + json.dumps({"error": {"message": message}}).encode() + b"\n\n"

    response = Response(events(), mimetype="text/event-stream")
    response.call_on_close(turn.close)
    return response


@contextmanager
def _turn() -> Iterator[None]:
    """One of the answers that may come at once. Raises UnavailableError where all are taken."""
    answers = hub().answers
    if not answers.acquire(blocking=False):
        raise UnavailableError("Many prompts are being answered here just now: try again in a moment.")
    try:
        yield
    finally:
        answers.release()


def _completion_request(model: str, prompt: str, tokens: str, *, stream: bool) -> dict[str, object]:
    """The completion request. Raises GraftError for a prompt or a length out of bounds."""
    if not prompt or len(prompt) > MAX_PROMPT_CHARS:
        raise GraftError(f"The prompt must have 1 to {MAX_PROMPT_CHARS:,} characters.")
    if not tokens.isdecimal() or not 0 < int(tokens[:6]) <= MAX_NEW_TOKENS:
        raise GraftError(f"The answer's length must be 1 to {MAX_NEW_TOKENS} tokens.")
    return {
        "model": _seen_model(model),
        "prompt": prompt,
        "max_tokens": int(tokens),
        "temperature": 0,
        "stream": stream,
    }


def _seen_model(model: str) -> str:
    """What the inference server is asked for. It may see every adapter, and says nothing here of those that the caller doesn't.

    Raises NotFoundError for these as for what isn't there.
    """
    if model.startswith(TASK_PREFIX):
        revision = registry().resolve(model, caller=caller())
        return f"{revision.repo}@{revision.id}"
    name = model.partition("@")[0]
    if queries.is_name_of_a_repo(registry().db, name):
        registry().repo(name, caller())
    return model  # else a base, or an adapter of the inference server's own


def _open(wanted: dict[str, object]) -> HTTPResponse:
    """Raises GraftError with the inference server's own message, or saying that there is none."""
    url = hub().inference_url
    if url is None:
        raise ForbiddenError("This hub knows no inference server: start it with `graft hub serve --inference URL`.")
    data = json.dumps(wanted).encode()
    headers = {"Content-Type": "application/json"}
    if key := hub().inference_key:
        headers["Authorization"] = f"Bearer {key}"
    asked = urllib.request.Request(f"{url}/v1/completions", data, headers)
    try:
        return urllib.request.urlopen(asked, timeout=INFERENCE_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise GraftError(_upstream_message(error)) from None
    except (OSError, HTTPException) as error:
        raise UnreachableError(
            f"No inference server answers at {url} ({_reason(error)}): is `graft serve` running?"
        ) from None


def _answer(wanted: dict[str, object]) -> str:
    """One whole answer, or in brackets why there is none."""
    try:
        with _turn(), _open(wanted) as reply:
            return str(json.load(reply)["choices"][0]["text"])
    except GraftError as error:
        return f"({error})"
    except (OSError, HTTPException) as error:
        return f"(The inference server stopped in the middle of its answer: {_reason(error)}.)"
    except (ValueError, LookupError, TypeError):
        return f"(What answers at {hub().inference_url} is no inference server: check --inference.)"


def _upstream_message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return f"The inference server answered {error.code} without a reason."


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
