"""What fields of bodies have in common: text that can be encoded, and a mistake that names its field."""

from typing import Annotated

from pydantic import AfterValidator, Field

from graft.server.errors import RequestError

MAX_MODEL_CHARS = 300


class BadField(RequestError):
    """A field of the body that can't be used as it stands. `param` names it."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


def check_encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(check_encodable)]
ModelName = Annotated[Text, Field(max_length=MAX_MODEL_CHARS)]
