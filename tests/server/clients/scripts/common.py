"""What the scripts share: each is run as `python NAME.py URL BASE ADAPTER...` in an environment that has its client and no graft.

The base has learned a few answers by heart (tests/server/http/learned.py); the adapters, one of each of several kinds, are random, so
that of their answers only what a schema, a tool or a plain request (`post`) says of them can be known.
"""

import json
import sys
import traceback
import urllib.error
import urllib.request
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

URL, BASE, *ADAPTERS = sys.argv[1:]
V1 = f"{URL}/v1"
MODELS = [BASE, *ADAPTERS]
SUM = [{"role": "user", "content": "sum"}]  # answered with "No tool.", or, where there is a tool, with a call
ARGUMENTS = {"a": 1, "é": [2]}
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}
LEARNED_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


class Animal(BaseModel):
    """Short enough for a random model, and nothing else beside."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    legs: int = Field(ge=0, le=9)


def post(path, body):
    """A plain request's answer, without any client."""
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


def listed(model):
    """What /v1/models/{model} says of it."""
    with urllib.request.urlopen(f"{V1}/models/{model}", timeout=120) as response:
        return json.load(response)


def said(model, messages=SUM, **more):
    """What a chat answers."""
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12} | more
    return post("/v1/chat/completions", body)["choices"][0]["message"]["content"]


def names_field(error, field):
    """Whether an exception is the server's 400 about a field."""
    text = f"{error} {getattr(error, 'body', '')}"
    return "400" in text and field in text


def refused(field, call):
    """`call` ends in an error that names the field."""
    try:
        call()
    except Exception as error:
        assert names_field(error, field), f"{field}: {type(error).__name__}: {error}"
    else:
        raise AssertionError(f"{field} was not refused")


def run(*checks):
    """All of them; exits with 1 where one fails."""
    failed = []
    for check in checks:
        try:
            check()
        except Exception:
            traceback.print_exc()
            failed.append(check.__name__)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
