"""The bodies that clients send, checked field by field: what hub and inference server have in common. Knows neither's fields."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from graft.hub.errors import GraftError

MAX_DEPTH = 256  # of lists and objects within each other; what writes them again needs a stack for each


class BodyError(GraftError):
    """A body that can't be used as it stands. `param` names the field."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class Body(BaseModel):
    """A JSON object: no unknown fields, no conversions, nulls as if not given."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, given: object) -> object:
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


AnyBody = TypeVar("AnyBody", bound=Body)


def check_body(schema: type[AnyBody], given: object) -> AnyBody:
    """A body's JSON as `schema`. Raises BodyError naming the first field that won't do."""
    if not isinstance(given, dict):
        raise BodyError("The body must be a JSON object.")
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise _first_mistake(error, given) from None


def is_shallow(value: object) -> bool:
    """Whether what JSON stands for is nested no deeper than MAX_DEPTH, so that it can be written again anywhere."""
    level = [value]
    for _ in range(MAX_DEPTH):
        held = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [item for items in held for item in items if isinstance(item, (dict, list))]
        if not level:
            return True
    return False


def _first_mistake(error: ValidationError, given: object) -> BodyError:
    """The first mistake, in OpenAI's way of naming fields: messages[0].content."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = _param(first["loc"], given, first["type"] == "missing")
    messages = {
        "extra_forbidden": f"Unknown field {param!r}: see /openapi.json for what is known.",
        "missing": f"The field {param!r} is required.",
    }
    reason = first["msg"].removeprefix("Value error, ")
    return BodyError(messages.get(first["type"], f"{param}: {reason}."), param or None)


def _param(location: Sequence[int | str], given: object, missing: bool) -> str:
    """A mistake's place in the body that was given. What pydantic calls a branch of a union is no place there, and is left out."""
    path, value = "", given
    for i, part in enumerate(location):
        if isinstance(value, list) and isinstance(part, int):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or (missing and i == len(location) - 1)):
            path, value = f"{path}.{part}", value.get(part)
    return path.removeprefix(".")
