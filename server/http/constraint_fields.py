"""What a body may say about the text to be made: OpenAI's `response_format`, and vLLM's `structured_outputs` and `guided_*`.

All of them become one constraint (structured/constraint.py) and the name of the field that asked for it.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from graft.hub.request_body import Body
from graft.server.errors import ConstraintError
from graft.server.http.field_types import check_encodable
from graft.server.structured.constraint import (
    ANY_OBJECT,
    Choice,
    Constraint,
    Grammar,
    Regex,
    Schema,
    Tagged,
)
from graft.server.structured.constraint import Tag as TextTag

MAX_CHOICE = 1000
MAX_TAGS = 128


def _read_json(value: object) -> object:
    """A schema may come as a text that holds it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("the text is not JSON") from None


def _as_text(schema: Mapping[str, object] | bool) -> str:
    """Properties stay in their order, in which they are made."""
    try:
        text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return check_encodable(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConstraintError(f"The schema can't be read: {reason}.") from None


Text = Annotated[str, Field(min_length=1), AfterValidator(check_encodable)]
_ObjectOrBool = dict[str, object] | bool
JsonSchema = Annotated[
    _ObjectOrBool,
    BeforeValidator(_read_json),
    WithJsonSchema({"type": ["object", "boolean", "string"], "description": "A JSON schema, or a text that holds one"}),
]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICE)]


class TextFormat(Body):
    """Whatever comes."""

    type: Literal["text"]

    def constraint(self) -> None:
        return None


class ObjectFormat(Body):
    """A JSON object."""

    type: Literal["json_object"]

    def constraint(self) -> Constraint:
        return ANY_OBJECT


class NamedSchema(Body):
    """`strict` or not, the schema is kept to."""

    name: str = ""
    description: str = ""
    schema_: Annotated[_ObjectOrBool, WithJsonSchema({"type": ["object", "boolean"]})] = Field(alias="schema")
    strict: bool = False


class SchemaFormat(Body):
    """JSON that a schema holds valid."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    def constraint(self) -> Constraint:
        return Schema(_as_text(self.json_schema.schema_))


class Structure(Body):
    """A stretch of JSON between two texts; `begin` begins with one of the triggers."""

    begin: Text
    schema_: Annotated[_ObjectOrBool, WithJsonSchema({"type": ["object", "boolean"]})] = Field(alias="schema")
    end: str


class TagFormat(Body):
    """Free text in which from a trigger on a structure comes."""

    type: Literal["structural_tag"]
    structures: Annotated[list[Structure], Field(min_length=1, max_length=MAX_TAGS)]
    triggers: Annotated[list[Text], Field(min_length=1, max_length=MAX_TAGS)]

    @model_validator(mode="after")
    def _check_triggers(self) -> "TagFormat":
        for structure in self.structures:
            if not any(structure.begin.startswith(one) for one in self.triggers):
                raise ValueError(f"no trigger begins {structure.begin!r}")
        return self

    def constraint(self) -> Constraint:
        return Tagged(tuple(self._tag(structure) for structure in self.structures))

    def _tag(self, structure: Structure) -> TextTag:
        trigger = next(one for one in self.triggers if structure.begin.startswith(one))
        return TextTag(trigger, structure.begin, Schema(_as_text(structure.schema_)), structure.end)


def _format_of(given: object) -> str | None:
    return f"({given.get('type')})" if isinstance(given, dict) else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("(text)")]
    | Annotated[ObjectFormat, Tag("(json_object)")]
    | Annotated[SchemaFormat, Tag("(json_schema)")]
    | Annotated[TagFormat, Tag("(structural_tag)")],
    Discriminator(
        _format_of,
        custom_error_type="format",
        custom_error_message="type must be text, json_object, json_schema or structural_tag",
    ),
]
Tags = Annotated[TagFormat, BeforeValidator(_read_json), WithJsonSchema({"type": ["object", "string"]})]


class StructuredOutputs(Body):
    """One way of vLLM's. What it can be told besides is of no effect on which texts are right, or refused."""

    json_: JsonSchema | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Texts | None = None
    grammar: Text | None = Field(None, description="Lark's notation, or GBNF")
    json_object: bool = False
    structural_tag: Tags | None = None
    disable_fallback: bool = False
    disable_any_whitespace: Literal[False] = False
    disable_additional_properties: Literal[False] = False

    def constraints(self) -> list[Constraint]:
        made: list[Constraint] = []
        if self.json_ is not None:
            made.append(Schema(_as_text(self.json_)))
        if self.regex is not None:
            made.append(Regex(self.regex))
        if self.choice is not None:
            made.append(Choice(tuple(self.choice)))
        if self.grammar is not None:
            made.append(Grammar(self.grammar))
        if self.json_object:
            made.append(ANY_OBJECT)
        if self.structural_tag is not None:
            made.append(self.structural_tag.constraint())
        return made


class ConstrainedBody(Body):
    """The part of a body that says what the text has to be."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = Field(None, description="structured_outputs.json")
    guided_regex: Annotated[str, AfterValidator(check_encodable)] | None = None
    guided_choice: Annotated[list[Text], Field(max_length=MAX_CHOICE)] | None = None
    guided_grammar: Annotated[str, AfterValidator(check_encodable)] | None = None

    @model_validator(mode="after")
    def _constrained_once(self) -> "ConstrainedBody":
        asked = self._asked()
        if len({constraint for _, constraint in asked}) > 1:  # guidance says the same by an old and a new name
            fields = " and ".join(field for field, _ in asked)
            raise ConstraintError(f"A text can be held to one thing at a time: {fields} are given.", asked[1][0])
        return self

    @property
    def constraint(self) -> Constraint | None:
        """Raises ConstraintError for what can be seen to be wrong with it without looking closer."""
        return self._asked()[0][1] if self._asked() else None

    @property
    def constraint_field(self) -> str | None:
        """Which field asked for it."""
        return self._asked()[0][0] if self._asked() else None

    def _asked(self) -> list[tuple[str, Constraint]]:
        """(field, constraint) of every field that asks for one. An empty text or list asks for nothing."""
        made: list[tuple[str, Constraint | None]] = []
        if self.response_format is not None:
            made.append(("response_format", self.response_format.constraint()))
        if self.structured_outputs is not None:
            made += [("structured_outputs", one) for one in self.structured_outputs.constraints()]
        if self.guided_json is not None:
            made.append(("guided_json", Schema(_as_text(self.guided_json))))
        if self.guided_regex:
            made.append(("guided_regex", Regex(self.guided_regex)))
        if self.guided_choice:
            made.append(("guided_choice", Choice(tuple(self.guided_choice))))
        if self.guided_grammar:
            made.append(("guided_grammar", Grammar(self.guided_grammar)))
        return [(field, one) for field, one in made if one is not None]
