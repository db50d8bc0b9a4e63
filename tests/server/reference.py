"""The tables of docs/serving.md that are made from the code. `python -m tests.server.reference` writes them anew."""

from pathlib import Path

import click

from graft.hub.errors import GraftError
from graft.server.commands.serve import serve
from graft.server.http.app import create_app  # noqa: F401  every error is known when it is
from graft.server.http.openapi.document import document

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ERRORS_OF = (
    "graft.server.http",
    "graft.server.operations",
    "graft.server.errors",
    "graft.server.keys",
    "graft.server.engine",
    "graft.hub.errors",
)


def routes() -> list[str]:
    lines = ["| route | what |", "| --- | --- |"]
    for path, methods in document("BASE")["paths"].items():
        for method, told in methods.items():
            lines.append(f"| `{method.upper()} {path}` | {told['summary']} |")
    return lines


def fields() -> list[str]:
    """What each body holds, those that are of no effect left out."""
    found = document("BASE")
    schemas, lines = found["components"]["schemas"], ["| body of | fields |", "| --- | --- |"]
    for path, methods in found["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for media in content.values():
            names = [one["$ref"].rsplit("/", 1)[1] for one in media["schema"].get("anyOf", [media["schema"]])]
            lines += [f"| `{path}` | {', '.join(_own_fields(schemas[name]))} |" for name in names]
    return lines


def _own_fields(schema: dict) -> list[str]:
    own = {key for key, value in schema["properties"].items() if "of no effect" not in value.get("description", "")}
    return [
        f"`{key}`"
        for key in sorted(own)
        if "enum" not in schema["properties"][key] or key in schema.get("required", ())
    ]


def headers() -> list[str]:
    """Of answers. An Allow is only of what is no route's answer."""
    described = document("BASE")["components"]["headers"]
    return [
        "| header | what |",
        "| --- | --- |",
        *(f"| `{name}` | {one['description']} |" for name, one in described.items()),
    ]


def options() -> list[str]:
    lines = ["| option | default | what |", "| --- | --- | --- |"]
    for one in serve.params:
        if isinstance(one, click.Option) and not one.hidden:
            told = (one.help or "").replace("|", "\\|").split("[default:")
            default = told[1].strip(" ]") if len(told) > 1 else one.default if one.show_default else ""
            lines.append(f"| `{'`, `'.join(one.opts)}` | {default} | {told[0].strip()} |")
    return lines


def errors() -> list[str]:
    found, open_ = set(), [GraftError]
    while open_:
        one = open_.pop()
        open_ += one.__subclasses__()
        if one.__module__.startswith(ERRORS_OF) and one.__doc__:
            found.add((one.status, one.code, one.__doc__.split("\n\n")[0].replace("\n   ", "").strip()))
    told: dict[tuple[int, str], str] = {}
    for status, code, what in sorted(found):
        told.setdefault((status, code), what)
    return [
        "| status | code | what |",
        "| --- | --- | --- |",
        *(f"| {status} | `{code}` | {what} |" for (status, code), what in told.items()),
    ]


TABLES = {"routes": routes, "headers": headers, "fields": fields, "options": options, "errors": errors}


def written(text: str) -> str:
    """The page with its tables as they should be."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, rest = text.split(begin)
        text = head + begin + "\n".join(make()) + "\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
