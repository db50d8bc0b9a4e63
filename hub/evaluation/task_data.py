"""Examples: what a task's data says, and how it is read.

A line of a JSONL file (or an item of one JSON array) is `{"messages": [...]}` (the last message is the assistant's) or `{"prompt": ...,
"completion": ...}` (strings, or messages), TRL's schemas; `"labels": [...]` lists a classification's choices, `"tools": [...]` what may be
called in a conversation, whose messages hold `tool_calls` and results as OpenAI's API has them. CSV files
have the columns prompt, completion and labels (with | between them); Parquet files (with pyarrow) and Hugging Face data
sets (hf:NAME, with `datasets`) either's columns. Torch-free. Knows neither batches nor scores.
"""

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graft.hub.chat.turns import ChatTurn, PastCall, Tool
from graft.hub.errors import DataError

_HF = "hf:"
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair, which JSON can spell and UTF-8 can't
ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True)
class Example:
    """One example. A prompt of messages goes through the base's chat template, a string stands as it is."""

    prompt: str | tuple[ChatTurn, ...]
    completion: str
    labels: tuple[str, ...] = ()  # a classification's choices, the completion among them
    where: str = field(default="", compare=False)  # file and line, for errors
    calls: tuple[PastCall, ...] = ()  # that the answer makes after the completion, written as the chat template does
    tools: str = ""  # those that are offered, a JSON list in OpenAI's shape; "" for none

    def to_row(self) -> dict[str, object]:
        """The canonical JSONL row: equal for equal examples, whatever schema they came in."""
        prompt = self.prompt if isinstance(self.prompt, str) else [_message_row(turn) for turn in self.prompt]
        called = [_message_row(ChatTurn("assistant", self.completion, calls=self.calls))] if self.calls else None
        more = {"labels": list(self.labels), "tools": json.loads(self.tools or "[]")}
        row: dict[str, object] = {"prompt": prompt, "completion": called or self.completion}
        return row | {key: value for key, value in more.items() if value}


def load_examples(path: str | Path) -> list[Example]:
    """The examples of a .jsonl (or .json), .csv or .parquet file, or of a data set hf:NAME[[:CONFIG]:SPLIT].

    Raises DataError naming the file and the line.
    """
    if str(path).startswith(_HF):
        return _load_hf(str(path))
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"The data {path} can't be read: {error.strerror}.") from None
    return _PARSERS.get(path.suffix.lower(), parse_examples)(data, str(path))


def source_name(path: str | Path) -> str:
    """What provenance calls the data: a file's name, or the whole name of a data set."""
    return str(path) if str(path).startswith(_HF) else Path(path).name


def parse_examples(data: bytes, source: str) -> list[Example]:
    """The examples of JSONL bytes, or of one JSON array; `source` names them in errors. Raises DataError with the line."""
    if (array := _array(data, source)) is not None:
        return _require_some(
            [parse_row(row, f"{source}, item {number}") for number, row in enumerate(array, start=1)], source
        )
    examples = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (UnicodeDecodeError, RecursionError, ValueError) as error:
            hint = " An example stands on one line, whole (JSONL)." if line.strip() in (b"{", b"[") else ""
            raise DataError(f"{where}: not a line of JSON ({error}).{hint}") from None
        examples.append(parse_row(row, where))
    return _require_some(examples, source)


def _array(data: bytes, source: str) -> list[object] | None:
    """The items where the whole file is one JSON array, as fine-tuning data often comes; None for anything else."""
    if not data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return None
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(
            f"{source} begins as a JSON array and is none ({error}). Write one array of objects, or one object a line."
        ) from None
    return document if isinstance(document, list) else None


def _parse_csv(data: bytes, source: str) -> list[Example]:
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source} is not a CSV file in UTF-8: {error}.") from None
    examples = []
    for number, row in rows:
        where = f"{source}, line {number}"
        if None in row or None in row.values():
            raise DataError(
                f"{where}: it has more or fewer cells than the header {', '.join(reader.fieldnames or ())}."
            )
        labels = row.pop("labels", "")
        examples.append(parse_row({**row, **({"labels": labels.split("|")} if labels else {})}, where))
    return _require_some(examples, source)


def _parse_parquet(data: bytes, source: str) -> list[Example]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{source}: reading Parquet needs pyarrow (pip install pyarrow), or use JSONL.") from None
    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    except arrow.ArrowException as error:
        raise DataError(f"{source} is not a Parquet file: {error}.") from None
    return _require_some(
        [parse_row(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)], source
    )


def _load_hf(source: str) -> list[Example]:
    """A Hugging Face data set: hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT; a split may be a slice, train[:500]."""
    name, *where = re.split(r":(?![^\[]*\])", source.removeprefix(_HF))
    if not name or len(where) > 2:
        raise DataError(f"{source} is no data set: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT.")
    config, split = where if len(where) == 2 else (None, *where) if where else (None, "train")
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source}: this needs the package datasets: pip install datasets.") from None
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"The data set {source} can't be loaded: {reason[0]}") from None
    return _require_some(
        [parse_row(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)], source
    )


_PARSERS = {".csv": _parse_csv, ".parquet": _parse_parquet}


def _require_some(examples: list[Example], source: str) -> list[Example]:
    if not examples:
        raise DataError(f"{source} holds no example: every line needs a prompt and a completion.")
    return examples


def parse_row(row: object, where: str) -> Example:
    """One row as an Example; keys of no meaning here are left aside. Raises DataError beginning with `where`."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is needed, this is a {type(row).__name__}.")
    prompt: str | tuple[ChatTurn, ...]
    if "messages" in row:
        if "prompt" in row or "completion" in row:
            raise DataError(f'{where}: give either "messages" or "prompt" and "completion", not both.')
        *turns, last = _messages(row["messages"], where, "messages")
        prompt, answer = tuple(turns), _answer([last], where, "messages")
    else:
        missing = [key for key in ("prompt", "completion") if key not in row]
        if missing:
            raise DataError(f'{where}: there is no "{missing[0]}" (nor "messages"); its keys are {_keys(row)}.')
        prompt, answer = _prompt(row["prompt"], where), _completion(row, where)
    if not prompt:
        raise DataError(f"{where}: the prompt is empty; the first token needs something to follow.")
    if not answer.text and not answer.calls:
        raise DataError(f"{where}: the completion is empty, so there is nothing to learn or to score.")
    labels = _labels(row.get("labels"), answer.text, where)
    tools = _tools(row.get("tools"), prompt, where)
    _require_text(where, prompt, answer, labels, tools)
    return Example(prompt, answer.text, labels, where, answer.calls, tools)


def _require_text(
    where: str, prompt: str | tuple[ChatTurn, ...], answer: ChatTurn, labels: tuple[str, ...], tools: str
) -> None:
    """Raises DataError for half a surrogate pair, which no tokenizer takes."""
    turns = (prompt,) if isinstance(prompt, str) else tuple(text for turn in prompt for text in _texts(turn))
    for key, texts in (("prompt", turns), ("completion", _texts(answer)), ("labels", labels), ("tools", (tools,))):
        if half := _HALF.search("\n".join(texts)):
            raise DataError(
                f'{where}: "{key}" holds {half[0]!r}, half of a surrogate pair, which is no text. Write the whole '
                f"character, or leave it out."
            )


def _texts(turn: ChatTurn) -> tuple[str, ...]:
    return (turn.text, *(text for call in turn.calls for text in (call.name, str(call.arguments))))


def data_hash(examples: Iterable[Example]) -> str:
    """sha256 hex over the canonical rows in order: the identity of a data set."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example.to_row(), sort_keys=True, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def labels_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """All labels in order of first appearance; () unless every example lists some."""
    if not all(example.labels for example in examples):
        return ()
    return tuple(dict.fromkeys(label for example in examples for label in example.labels))


def _prompt(value: object, where: str) -> str | tuple[ChatTurn, ...]:
    return value if isinstance(value, str) else tuple(_messages(value, where, "prompt"))


def _completion(row: dict[str, object], where: str) -> ChatTurn:
    value = row["completion"]
    if isinstance(value, str):
        return ChatTurn("assistant", value)
    if isinstance(row["prompt"], str):
        kind = "messages" if isinstance(value, list) else _show(value)
        raise DataError(f"{where}: the prompt is text, so the completion must be text too, not {kind}.")
    return _answer(_messages(value, where, "completion"), where, "completion")


def _answer(messages: Sequence[ChatTurn], where: str, key: str) -> ChatTurn:
    if len(messages) != 1 or messages[0].role != "assistant":
        raise DataError(f'{where}: "{key}" must end in one message of the role "assistant", which is what is learned.')
    return messages[0]


def _messages(value: object, where: str, key: str) -> list[ChatTurn]:
    if not isinstance(value, list) or not value:
        raise DataError(f'{where}: "{key}" must be text or a list of messages, not {_show(value)}.')
    return [_message(item, where) for item in value]


def _message(item: object, where: str) -> ChatTurn:
    given = item if isinstance(item, dict) else {}
    calls = _calls(given.get("tool_calls"), where)
    content = "" if calls and given.get("content") is None else _content(given.get("content"))
    if content is None or given.get("role") not in ROLES:
        raise DataError(f'{where}: a message is {{"role": {"|".join(ROLES)}, "content": text}}, not {_show(item)}.')
    if calls and given["role"] != "assistant":
        raise DataError(f'{where}: "tool_calls" are an assistant\'s, not those of the role "{given["role"]}".')
    name, call_id = (given.get(key) for key in ("name", "tool_call_id"))
    return ChatTurn(
        given["role"],
        content,
        name if isinstance(name, str) else None,
        calls=calls,
        call_id=call_id if isinstance(call_id, str) else None,
    )


def _calls(value: object, where: str) -> tuple[PastCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f'{where}: "tool_calls" must be a list of calls, not {_show(value)}.')
    return tuple(_call(one, where) for one in value)


def _call(value: object, where: str) -> PastCall:
    """A call as OpenAI's API has it; its arguments are JSON text, or what it stands for."""
    function = value.get("function") if isinstance(value, dict) else None
    name, arguments = (
        (function.get(key) for key in ("name", "arguments")) if isinstance(function, dict) else (None, None)
    )
    if not isinstance(name, str) or not isinstance(arguments, (str, dict)):
        raise DataError(
            f'{where}: a call is {{"type": "function", "function": {{"name": text, "arguments": object}}}}, not {_show(value)}.'
        )
    id = value.get("id") if isinstance(value, dict) else None
    return PastCall(
        id if isinstance(id, str) else "", name, arguments if isinstance(arguments, str) else _json(arguments)
    )


def _tools(value: object, prompt: str | tuple[ChatTurn, ...], where: str) -> str:
    """As a JSON list; some data sets hold them as its text."""
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f'{where}: "tools" is a text that is no JSON: {_show(value)}.') from None
    if not value:
        return ""
    if not isinstance(value, list):
        raise DataError(f'{where}: "tools" must be a list of functions, not {_show(value)}.')
    if isinstance(prompt, str):
        raise DataError(f'{where}: "tools" go into messages by the chat template, and this prompt is a text.')
    return _json([_tool(one, where).as_sent() for one in value])


def _tool(value: object, where: str) -> Tool:
    """As serving sends it to the template: name, description and parameters, and nothing else."""
    function = value.get("function") if isinstance(value, dict) else None
    keys = ("name", "description", "parameters")
    name, told, parameters = (function.get(key) for key in keys) if isinstance(function, dict) else (None, None, None)
    if isinstance(name, str) and isinstance(told, str | None) and isinstance(parameters, dict | None):
        return Tool(name, told, parameters)
    raise DataError(
        f'{where}: a tool is {{"type": "function", "function": {{"name": text, "description": text, "parameters": '
        f"JSON schema}}}}, not {_show(value)}."
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _message_row(turn: ChatTurn) -> dict[str, object]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in turn.calls
    ]
    more = {"tool_calls": calls, "tool_call_id": turn.call_id, "name": turn.name}
    return {"role": turn.role, "content": turn.text} | {key: value for key, value in more.items() if value}


def _content(value: object) -> str | None:
    """A message's text, which may come in parts of text, as the server takes it; None for anything else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        return None
    texts = [part.get("text") for part in value]
    return "".join(texts) if texts and all(isinstance(text, str) for text in texts) else None


def _labels(value: object, completion: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(label, str) and label for label in value):
        raise DataError(f'{where}: "labels" must be a list of texts, not {_show(value)}.')
    if len(set(value)) != len(value) or len(value) < 2:
        raise DataError(f'{where}: "labels" must hold at least two choices, all different.')
    if completion not in value:
        raise DataError(f"{where}: the completion {_show(completion)} is not among the labels {_show(value)}.")
    return tuple(value)


def _keys(row: dict[str, object]) -> str:
    return ", ".join(sorted(row)) or "none"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
