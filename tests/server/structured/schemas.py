"""Schemas of every supported keyword, as hypothesis draws them."""

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "name", "two words", 'quo"te', "back\\slash", "ü", "日本", "", "a/b", "$ref", "not"])
PATTERNS = [
    *("^a+$", "b", "^[A-Z]{2}-[0-9]{1,3}$", "^(x|yz)*$", "\\d", "^\\w{1,4}\\s?$", "é", "^[^a-z]{1,3}$", "\\.", "^$|^q"),
    *("^.\\S{2}$", "^[^\\s]a[\\S]$", "^[[&&~\\s]{1,3}$", "^[\\w-]+$", "^\\W$"),
]
FORMATS = ["date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "duration"]
TEXTS = st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs"]), max_size=6)  # SmolLM2 has no byte F1
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=3,
)


@st.composite
def bounds(draw, least, most, values):
    low, high = sorted((draw(values), draw(values)))
    kept = draw(st.sampled_from([{least: low}, {most: high}, {least: low, most: high}, {}]))
    return dict(kept)


@st.composite
def strings(draw):
    kind = draw(st.sampled_from(["length", "pattern", "format"]))
    if kind == "length":
        return {"type": "string", **draw(bounds("minLength", "maxLength", st.integers(0, 8)))}
    if kind == "pattern":
        return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
    return {"type": "string", "format": draw(st.sampled_from(FORMATS))}


@st.composite
def integers(draw):
    made = {"type": "integer", **draw(bounds("minimum", "maximum", st.integers(-300, 5000)))}
    if draw(st.booleans()) and "minimum" not in made:
        made["multipleOf"] = draw(st.integers(1, 12))
    if draw(st.booleans()) and "maximum" in made and made.get("minimum", -1000) < made["maximum"] - 2:
        made["exclusiveMaximum"] = made.pop("maximum")
    return made


@st.composite
def numbers(draw):
    values = st.integers(-4000, 4000).map(lambda n: n / 8)
    return {"type": "number", **draw(bounds("minimum", "maximum", values))}


def leaves():
    return st.one_of(
        strings(), integers(), numbers(), st.just({"type": "boolean"}), st.just({"type": "null"}),
        st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}), VALUES.map(lambda one: {"const": one}),
        st.just({"type": ["integer", "null"]}), st.just({"$ref": "#/$defs/tree"}), st.just({"$ref": "#/$defs/code"}),
    )  # fmt: skip


@st.composite
def arrays(draw, inner):
    made = {"type": "array", "items": draw(inner), **draw(bounds("minItems", "maxItems", st.integers(0, 3)))}
    if draw(st.booleans()):
        made["prefixItems"] = [draw(inner)]
    return made


@st.composite
def objects(draw, inner):
    properties = {name: draw(inner) for name in draw(st.lists(NAMES, max_size=3, unique=True))}
    made = {"type": "object", "properties": properties}
    made["required"] = [name for name in properties if draw(st.booleans())]
    more = draw(st.sampled_from(["none", "schema", "pattern", "open"]))
    if more in ("none", "pattern"):
        made["additionalProperties"] = False
    if more == "schema":
        made["additionalProperties"] = draw(inner)
    if more == "pattern":
        made["patternProperties"] = {"^x": draw(inner)}
    if len(made["required"]) == len(properties) and draw(st.booleans()):
        made["maxProperties"] = len(properties) + draw(st.integers(0, 2))
    return made


@st.composite
def unions(draw, inner):
    kind = draw(st.sampled_from(["anyOf", "oneOf"]))
    if kind == "anyOf":
        return {"anyOf": [draw(inner), draw(inner)]}
    tagged = [
        {"type": "object", "properties": {"kind": {"const": name}, "value": draw(inner)}, "required": ["kind"]}
        for name in ("one", "two")
    ]
    return {"oneOf": tagged}


def schemas():
    """Each with two definitions to refer to, one of them recursive."""
    inner = st.recursive(leaves(), lambda inner: st.one_of(arrays(inner), objects(inner), unions(inner)), max_leaves=6)
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
    code = {"type": "string", "pattern": "^[A-C]{1,3}$"}
    return st.one_of(inner, objects(inner)).map(lambda one: {**one, "$defs": {"tree": tree, "code": code}})
