"""A mistake in a body is told by its place in that body, whatever unions its schema is made of."""

from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field

from graft.hub.request_body import Body, BodyError, check_body


class Text(Body):
    type: Literal["text"]
    text: str


class Image(Body):
    type: Literal["image"]
    url: str


class Message(Body):
    content: str | list[Text]
    parts: list[Annotated[Text | Image, Discriminator("type")]] = Field(default_factory=list)
    str: int = 0  # named like what pydantic calls a branch


class Question(Body):
    messages: list[Message]
    choice: Literal["auto"] | Text = "auto"
    Name: str = ""
    of: dict[str, int | list[int]] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "messages"),
        ({"messages": 1}, "messages"),
        ({"messages": [{"content": "a"}, 2]}, "messages[1]"),
        ({"messages": [{"content": 3}]}, "messages[0].content"),
        ({"messages": [{}]}, "messages[0].content"),
        ({"messages": [{"content": "a", "str": "b"}]}, "messages[0].str"),
        ({"messages": [{"content": "a", "parts": [{"type": "text"}]}]}, "messages[0].parts[0].text"),
        ({"messages": [{"content": "a", "parts": [{"type": "image", "url": 1}]}]}, "messages[0].parts[0].url"),
        ({"messages": [{"content": "a", "parts": [{"type": "none"}]}]}, "messages[0].parts[0]"),
        ({"messages": [], "Name": 1}, "Name"),
        ({"messages": [], "choice": {"type": "text"}}, "choice"),
        ({"messages": [], "of": {"str": "x"}}, "of.str"),
        ({"messages": [], "of": {"(b)": "x"}}, "of.(b)"),
        ({"messages": [], "New": 1}, "New"),
    ],
)
def test_where_a_mistake_is(given: object, param: str) -> None:
    with pytest.raises(BodyError) as caught:
        check_body(Question, given)
    assert caught.value.param == param, caught.value
