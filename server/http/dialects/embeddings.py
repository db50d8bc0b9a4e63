"""/v1/embeddings: texts as vectors, made of a base's or an adapter's hidden states behind all layers."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from queue import SimpleQueue

import numpy as np
from flask import Blueprint, Response, g, jsonify, request
from numpy.typing import NDArray

from graft.hub.errors import GraftError, NotFoundError
from graft.server.engine.client import EngineClient
from graft.server.engine.request import Embedded, Finished, Pooling, Request, Sink, Started
from graft.server.errors import TooLongError
from graft.server.http.access.gate import name_model
from graft.server.http.completions import prompt_ids
from graft.server.http.dialects.embedding_bodies import (
    EmbeddingsAnswer,
    EmbeddingsBody,
    EmbeddingShown,
    EmbeddingUsage,
)
from graft.server.http.field_types import BadField
from graft.server.http.service import find_speech, read_body, service, shown_model, taking_place, unknown_model
from graft.server.keys.usage import Usage
from graft.server.operations.patience import Patience
from graft.server.sampling.params import HiddenSum
from graft.server.served_version import Served

blueprint = Blueprint("embeddings", __name__)


@blueprint.post("/v1/embeddings")
def embeddings() -> Response:
    body = read_body(EmbeddingsBody)
    name_model(body.model)
    engine = service().engine
    if body.dimensions is not None and body.dimensions > engine.base.hidden_size:
        raise BadField(
            f"dimensions ({body.dimensions}) is above the {engine.base.hidden_size} that this base's hidden states have.",
            "dimensions",
        )
    model = None if body.model == service().base_name else body.model
    with taking_place() as visit:
        prompts = _prompts(body, engine)
        find_speech(body.model, "", visit.client)  # for its adapter: until it is there a server that drains refuses
        count = sum(map(len, prompts))
        visit.reserve(count)
        g.record.prompt_tokens = count
        alike = Request(
            (),
            model,
            max_tokens=0,
            pooling=Pooling(body.pooling),
            client=visit.client,
            weight=visit.weight,
            priority=body.priority,
        )
        asked = [replace(alike, prompt=ids) for ids in prompts]
        begun: list[int] = []
        try:
            vectors = [_finish(vector, body) for vector in _pool(asked, engine, g.patience, begun)]
        finally:
            if begun:
                visit.use(_usage(body, visit.key, sum(begun), cut_off=len(begun) < len(asked)))
    answer = EmbeddingsAnswer(
        object="list",
        data=[
            EmbeddingShown(object="embedding", index=i, embedding=_encode(vector, body))
            for i, vector in enumerate(vectors)
        ],
        model=shown_model(body.model),
        usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count),
    )
    return jsonify(answer.model_dump())


def _prompts(body: EmbeddingsBody, engine: EngineClient) -> list[tuple[int, ...]]:
    """Raises BadField or TooLongError for a text that can't be used."""
    prompts = [prompt_ids(text, engine, service().speeches.limit, "input") for text in body.input]
    longest = engine.base.max_model_len
    for i, ids in enumerate(prompts):
        if len(ids) > longest:
            raise TooLongError(
                f"This model's maximum context length is {longest} tokens; input[{i}] has {len(ids)}.", "input"
            )
    return prompts


def _usage(body: EmbeddingsBody, key: str, tokens: int, *, cut_off: bool) -> Usage:
    served: Served = g.served
    name = shown_model(body.model)
    return Usage(
        g.request_id, key, request.path, name, served.name, served.digest, prompt_tokens=tokens, cut_off=cut_off
    )


def _pool(requests: Sequence[Request], engine: EngineClient, patience: Patience, begun: list[int]) -> list[HiddenSum]:
    """The pooled states of all, in their order. `begun` gets the lengths of those that the engine begins with. Raises the first
    one's error, or what `patience` ends with, with nothing left under way."""
    sink: Sink = SimpleQueue()
    waiting = {}
    made: dict[int, HiddenSum] = {}
    try:
        for place, one in enumerate(requests):
            waiting[engine.submit(one, sink)] = place
        while waiting:
            stream, event = patience.take(sink)
            match event:
                case Started():
                    begun.append(len(stream.request.prompt))
                    g.served = event.served if event.served.digest else g.served
                case Embedded():
                    made[waiting[stream]] = event.vector
                case Finished():
                    del waiting[stream]
                case GraftError():
                    del waiting[stream]
                    raise event
    except NotFoundError as error:
        raise unknown_model(error) from None
    except TooLongError as error:  # with the adapter's virtual tokens
        error.param = error.param or "input"
        raise
    finally:
        for stream in waiting:
            engine.cancel(stream)
    return [made[place] for place in range(len(requests))]


def _finish(pooled: HiddenSum, body: EmbeddingsBody) -> NDArray[np.float32]:
    kept = pooled[: body.dimensions]
    length = np.linalg.norm(kept)
    return (kept / length if body.normalize and length > 0 else kept).astype("<f4")


def _encode(vector: NDArray[np.float32], body: EmbeddingsBody) -> list[float] | str:
    if body.encoding_format == "base64":
        return b64encode(vector.tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
