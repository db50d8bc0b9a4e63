"""All routes, as they are described: what is sent, what comes back, and what a caller needs."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from graft.server.http.access import header_names as names
from graft.server.http.access.limit_headers import ANTHROPIC, OPENAI
from graft.server.http.access.routes import Need
from graft.server.http.dialects import vllm_bodies as vllm
from graft.server.http.dialects.embedding_bodies import EmbeddingsAnswer, EmbeddingsBody
from graft.server.http.dialects.messages_body import CountTokensBody, MessagesBody
from graft.server.http.dialects.responses_body import ResponsesBody
from graft.server.http.openapi import answers, dialect_answers, events
from graft.server.http.openapi.events import Stream
from graft.server.http.openapi.failures import Error, MessagesError
from graft.server.http.openapi.headers import ADAPTER
from graft.server.http.schemas import AdapterBody, ChatBody, CompletionBody, OpenBody, PinBody

Answer = type[BaseModel] | type[str]  # text: no JSON


@dataclass(frozen=True)
class Route:
    """`answer`: its shape, None for any object. `bodies`: one of these is sent. `stream`: what comes
    instead where the body asks for it. `error`: the shape of failures."""

    method: str
    summary: str
    answer: Answer | None
    bodies: tuple[type[BaseModel], ...] = ()
    stream: Stream | None = None
    need: Need = Need.KEY
    error: type[BaseModel] = Error

    def names_model(self, path: str) -> bool:
        """Whether it is about one, which may have to be looked up."""
        return bool(self.bodies) or "{model}" in path

    def headers(self, path: str) -> list[str]:
        """Of its answers."""
        found = [names.REQUEST_ID]
        if self.error is MessagesError:
            found.append(names.MESSAGE_ID)
        if self.names_model(path):
            found += ADAPTER
        if any(issubclass(body, OpenBody) for body in self.bodies):
            found.append(names.IGNORED_FIELDS)
        if self.bodies:
            found += (ANTHROPIC if self.error is MessagesError else OPENAI).names
        return found


def _get(summary: str, answer: Answer | None, need: Need = Need.KEY) -> Route:
    return Route("get", summary, answer, need=need)


def _post(
    summary: str,
    answer: Answer,
    *bodies: type[BaseModel],
    stream: Stream | None = None,
    need: Need = Need.KEY,
    error: type[BaseModel] = Error,
) -> Route:
    return Route("post", summary, answer, bodies, stream, need, error)


ROUTES: Mapping[str, Route] = {
    "/v1/models": _get("The base and its adapters.", answers.ModelList),
    "/v1/models/{model}": _get("One of them.", answers.ModelAnswer),
    "/v1/completions": _post("Continue prompts.", answers.CompletionAnswer, CompletionBody, stream=events.COMPLETIONS),
    "/v1/chat/completions": _post("Answer a conversation.", answers.ChatAnswer, ChatBody, stream=events.CHATS),
    "/v1/responses": _post(
        "Answer a conversation.", dialect_answers.ResponseAnswer, ResponsesBody, stream=events.RESPONSES
    ),
    "/v1/messages": _post(
        "Answer a conversation.",
        dialect_answers.MessageAnswer,
        MessagesBody,
        stream=events.MESSAGES,
        error=MessagesError,
    ),
    "/v1/messages/count_tokens": _post(
        "Tokens of a prompt.", dialect_answers.TokenCount, CountTokensBody, error=MessagesError
    ),
    "/v1/embeddings": _post("Texts as vectors.", EmbeddingsAnswer, EmbeddingsBody),
    "/v1/adapters": _get("The adapters: what they are and in which memory.", answers.AdapterList),
    "/v1/adapters/load": _post(
        "Bring it to the device and prove it.", answers.AdapterShown, AdapterBody, need=Need.ADMIN
    ),
    "/v1/adapters/unload": _post("Take it out of memory.", answers.AdapterShown, AdapterBody, need=Need.ADMIN),
    "/v1/adapters/pin": _post("Keep it in memory, or let it go again.", answers.AdapterShown, PinBody, need=Need.ADMIN),
    "/v1/load_lora_adapter": _post("Give an adapter a name, and load it.", str, vllm.LoadBody, need=Need.ADMIN),
    "/v1/unload_lora_adapter": _post("Take the name back.", str, vllm.UnloadBody, need=Need.ADMIN),
    "/tokenize": _post("Token ids.", vllm.Tokens, vllm.TokenizeTextBody, vllm.TokenizeChatBody),
    "/detokenize": _post("The text of token ids.", vllm.DetokenizedText, vllm.DetokenizeBody),
    "/tokenizer_info": _get("How prompts are made.", vllm.TokenizerInfo),
    "/version": _get("graft's version.", vllm.Version),
    "/health": _get("Whether the process is alive.", answers.Health, Need.NOTHING),
    "/ready": _get("Whether it takes requests.", answers.Readiness, Need.NOTHING),
    "/replica": _get("Its base and what it has at hand, for an ingress.", answers.ReplicaShown, Need.ADMIN),
    "/metrics": _get("Numbers for Prometheus.", str, Need.METRICS),
    "/openapi.json": _get("This document.", None, Need.NOTHING),
}
