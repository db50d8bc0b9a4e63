"""The routes that vLLM has beside OpenAI's: token ids, its version, and adapters by name, as its controllers send them."""

from importlib.metadata import version
from pathlib import Path

from flask import Blueprint, Response, g, jsonify, request

from graft.hub.errors import ConflictError, NotFoundError
from graft.hub.evaluation.tokenization import encode_completion, encode_prompt, encode_rendered
from graft.server.http.access.gate import name_model, require_name, require_source
from graft.server.http.completions import read_conversation
from graft.server.http.dialects.vllm_bodies import (
    DetokenizeBody,
    DetokenizedText,
    LoadBody,
    TokenizeChatBody,
    TokenizerInfo,
    TokenizeTextBody,
    Tokens,
    UnloadBody,
    Version,
)
from graft.server.http.field_types import BadField
from graft.server.http.schemas import parse_json
from graft.server.http.service import find_speech, read_body, service, taking_place

blueprint = Blueprint("vllm", __name__)


class NoAdapterError(NotFoundError):
    """There is no adapter where one is said to be, or of that name."""

    code = "not_found"

    def __init__(self, message: str, param: str):
        super().__init__(message)
        self.param = param


# Token ids


@blueprint.post("/tokenize")
def tokenize() -> Response:
    given = parse_json(request.get_data())
    return _tokens_of_chat() if isinstance(given, dict) and "messages" in given else _tokens_of_text()


def _tokens_of_text() -> Response:
    body = read_body(TokenizeTextBody)
    tokenizer = service().tokenizer
    with taking_place() as visit:
        _require_model(body.model, visit.client)
        service().speeches.limit.check(body.prompt, "prompt")
        encode = encode_prompt if body.add_special_tokens else encode_completion
        return _tokens(encode(body.prompt, tokenizer), with_texts=body.return_token_strs)


def _tokens_of_chat() -> Response:
    body = read_body(TokenizeChatBody)
    model = body.model or service().base_name
    name_model(model)
    with taking_place() as visit:
        prompt = read_conversation(body, find_speech(model, body.chat_template, visit.client), model, None)
        encode = encode_prompt if body.add_special_tokens else encode_rendered
        return _tokens(encode(prompt.text, service().tokenizer), with_texts=body.return_token_strs)


def _require_model(model: str | None, client: str) -> None:
    """All models have the base's tokens. Raises UnknownModelError for a name that stands for none."""
    if model is not None and model != service().base_name:
        name_model(model)
        find_speech(model, "", client)


def _tokens(ids: list[int], *, with_texts: bool) -> Response:
    texts = service().tokenizer.convert_ids_to_tokens(ids) if with_texts else None
    assert not isinstance(texts, str)  # of several
    answer = Tokens(count=len(ids), max_model_len=service().engine.base.max_model_len, tokens=ids, token_strs=texts)
    return jsonify(answer.model_dump())


@blueprint.post("/detokenize")
def detokenize() -> Response:
    body, vocabulary = read_body(DetokenizeBody), service().engine.base.spec.vocab_size
    if not all(0 <= id < vocabulary for id in body.tokens):
        raise BadField(f"A token lies outside the base's vocabulary of {vocabulary}.", "tokens")
    with taking_place() as visit:
        _require_model(body.model, visit.client)
        text = service().tokenizer.decode(body.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # of one sequence
    return jsonify(DetokenizedText(prompt=text).model_dump())


@blueprint.get("/tokenizer_info")
def tokenizer_info() -> Response:
    tokenizer = service().tokenizer
    template = tokenizer.chat_template
    answer = TokenizerInfo(
        tokenizer_class=type(tokenizer).__name__,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        model_max_length=service().engine.base.max_model_len,
        chat_template=template if isinstance(template, str) else None,
    )
    return jsonify(answer.model_dump())


@blueprint.get("/version")
def server_version() -> Response:
    return jsonify(Version(version=version("grafthub")).model_dump())


# Adapters by name


@blueprint.post("/v1/load_lora_adapter")
def load_lora_adapter() -> Response:
    body, engine = read_body(LoadBody), service().engine
    require_name(body.lora_name, "lora_name")
    if body.lora_name == service().base_name:
        raise BadField(f"{body.lora_name} is the base's name: give the adapter another.", "lora_name")
    target = _folder(body) if Path(body.lora_path).is_absolute() else body.lora_path
    if isinstance(target, str):
        require_source(target)
    try:
        with taking_place() as visit:
            g.served = engine.attach(
                body.lora_name, target, visit.client, visit.weight, g.patience, replace=body.load_inplace
            )
    except ConflictError as error:
        raise BadField(str(error), "lora_name") from None  # 400, as vLLM has it
    except NotFoundError as error:
        raise _no_adapter(body, str(error)) from None
    return _done(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


def _folder(body: LoadBody) -> Path:
    """Raises BadField for a folder that clients may not name, NoAdapterError for one that holds no adapter."""
    root = service().adapter_root
    if root is None:
        raise BadField(
            "This server loads no folders that clients name (graft serve --adapter-root DIR allows those below DIR): give a "
            "name in its registry or hub.",
            "lora_path",
        )
    try:
        folder = Path(body.lora_path).resolve()
    except (OSError, RuntimeError):  # links that lead round in a circle
        raise _no_adapter(body, "its links lead nowhere") from None
    if not folder.is_relative_to(root.resolve()):
        raise BadField(
            "lora_path lies outside the folder that this server may load from (--adapter-root).", "lora_path"
        )
    return folder


def _no_adapter(body: LoadBody, why: str) -> NoAdapterError:
    message = f"Loading lora {body.lora_name} failed: No adapter found for {body.lora_path}: {why.rstrip('.')}."
    return NoAdapterError(message, "lora_path")


@blueprint.post("/v1/unload_lora_adapter")
def unload_lora_adapter() -> Response:
    body = read_body(UnloadBody)
    require_name(body.lora_name, "lora_name")
    if not service().engine.detach(body.lora_name):
        raise NoAdapterError(f"The lora adapter '{body.lora_name}' cannot be found.", "lora_name")
    return _done(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _done(text: str) -> Response:
    return Response(text, mimetype="text/plain")
