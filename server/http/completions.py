"""From a checked body to engine requests: every choice is its own. Knows no HTTP; answer.py makes the answer."""

from dataclasses import dataclass, replace

from graft.hub.chat.infill import find_format, infill_ends
from graft.hub.evaluation.tokenization import encode_prompt, encode_rendered
from graft.server.chat.prompts import ChatPrompt
from graft.server.chat.reply_parser import PLAIN_TEXT, ReplyRules
from graft.server.chat.speech import Speech, TextLimit
from graft.server.engine.client import EngineClient
from graft.server.engine.request import Request, stop_ids
from graft.server.errors import TooLongError
from graft.server.http.sampling_fields import read_drawing
from graft.server.http.schemas import BadField, ChatBody, CompletionBody, ConversationBody, GenerationBody
from graft.server.structured.constraint import Constraint

ASSUMED_TOKENS = 1024  # of an answer whose length nobody limits; what it has beyond that counts once it is known
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's; a chat goes on as long as there is room


@dataclass(frozen=True)
class AskedCompletions:
    """What a body asks of the engine. `requests`: n for each prompt, prompt after prompt; `shown` of each are given, the most
    probable ones."""

    requests: tuple[Request, ...]
    n: int
    shown: int
    stops: tuple[str, ...] = ()
    includes_stop: bool = False  # what ends a text is part of it
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_tokens: int = 0
    ends: frozenset[int] = frozenset()
    lists_end: bool = (
        True  # the token that ends a text is among those reported: in OpenAI's completions, not in its chat
    )
    constraint_field: str | None = None  # which field of the body asked for the requests' constraint
    rules: ReplyRules = PLAIN_TEXT
    unheld: tuple[str, ...] = ()  # fields of the body that the answers can't be held to

    def by(self, client: str, weight: float) -> "AskedCompletions":
        """The same, asked by a client."""
        requests = (replace(request, client=client, weight=weight) for request in self.requests)
        return replace(self, requests=tuple(requests))

    def most_tokens(self, longest: int) -> int:
        """Tokens that the prompts have and the answers may have, as far as the body says; where it doesn't, ASSUMED_TOKENS or as
        many as there is room for in `longest`."""
        return self.prompt_tokens + sum(
            min(ASSUMED_TOKENS, longest - len(request.prompt)) if request.max_tokens is None else request.max_tokens
            for request in self.requests
        )


def read_completion(body: CompletionBody, speech: Speech) -> AskedCompletions:
    """Raises BadField for a prompt that can't be used."""
    given, ends = (body.prompt, ()) if not body.suffix else _around_gap(body, speech)
    prompts = [prompt_ids(prompt, speech.engine, speech.limit) for prompt in given]
    limit = body.max_tokens
    if limit is None and speech.words.defaults.max_new_tokens is None:
        limit = DEFAULT_COMPLETION_TOKENS
    if limit is not None and body.min_tokens > limit:
        raise BadField(f"min_tokens ({body.min_tokens}) is above max_tokens ({limit}).", "min_tokens")
    asked = _read_completions(body, speech, prompts, limit, body.logprobs, body.constraint, echo=body.echo, ends=ends)
    return replace(asked, constraint_field=body.constraint_field)


def _around_gap(body: CompletionBody, speech: Speech) -> tuple[list[str], tuple[int, ...]]:
    """Prompts that ask for what is between the body's and its suffix, and the ids that end that. Raises BadField."""
    special = speech.tokenizer.added_tokens_encoder
    way = find_format(special)
    if way is None:
        raise BadField(
            "This base has no tokens that mark a gap, so it can't write what goes before a suffix.", "suffix"
        )
    if body.echo:
        raise BadField("A prompt around a gap is not shown: leave out echo, or suffix.", "echo")
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    if len(texts) < len(body.prompt):
        raise BadField("A suffix goes with a prompt of text, not of token ids.", "suffix")
    return [way.join(text, body.suffix) for text in texts], infill_ends(special, way)


def read_chat(body: ChatBody, speech: Speech) -> AskedCompletions:
    """Raises BadField or ChatError where there is no chat template, or messages that it refuses."""
    prompt = read_conversation(body, speech, body.model, body.constraint)
    ids = tuple(encode_rendered(prompt.text, speech.tokenizer))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    asked = _read_completions(body, speech, [ids], body.limit, logprobs, prompt.constraint)
    field = body.constraint_field or ("tools" if prompt.constraint is not None else None)
    return replace(asked, constraint_field=field, rules=prompt.rules, lists_end=False, unheld=prompt.unheld)


def read_conversation(body: ConversationBody, speech: Speech, model: str, answer: Constraint | None) -> ChatPrompt:
    """Raises BadField, TooLongError, or ChatError where there is no chat template, or messages that it refuses."""
    if speech.template is None:
        raise BadField(
            f"{model} has no chat template, so it can't take messages: use /v1/completions with a prompt.", "messages"
        )
    prompt = speech.prompts.prompt(body.as_request(answer), speech.template)
    speech.limit.check(prompt.text, "messages")
    return prompt


def prompt_ids(
    prompt: str | tuple[int, ...], engine: EngineClient, limit: TextLimit, param: str = "prompt"
) -> tuple[int, ...]:
    """`param`: the field that it came in. Raises BadField or TooLongError."""
    tokenizer, vocabulary = engine.base.tokenizer, engine.base.spec.vocab_size
    if not isinstance(prompt, str):
        if not all(0 <= id < vocabulary for id in prompt):
            raise BadField(f"A prompt token lies outside the base's vocabulary of {vocabulary}.", param)
        return prompt
    assert tokenizer is not None
    limit.check(prompt, param)
    ids = tuple(encode_prompt(prompt, tokenizer))
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if not ids and start is None:
        raise BadField("The prompt is empty, and this base has no token that begins a text.", param)
    return ids or (start,)  # an empty prompt: the beginning of a text, as OpenAI takes it


def _read_completions(
    body: GenerationBody,
    speech: Speech,
    prompts: list[tuple[int, ...]],
    max_tokens: int | None,
    logprobs: int | None,
    constraint: Constraint | None,
    *,
    echo: bool = False,
    ends: tuple[int, ...] = (),
) -> AskedCompletions:
    """`ends`: ids that end an answer beside the base's and the adapter's own."""
    engine, words, tokenizer = speech.engine, speech.words, speech.tokenizer
    vocabulary, longest = engine.base.spec.vocab_size, engine.base.max_model_len
    if not all(0 <= id < vocabulary for id in body.stop_token_ids):
        raise BadField(f"A stop token lies outside the base's vocabulary of {vocabulary}.", "stop_token_ids")
    most, asked_for = max(len(prompt) for prompt in prompts), max_tokens
    if max_tokens is None and words.defaults.max_new_tokens is not None:
        max_tokens = max(1, min(words.defaults.max_new_tokens, longest - most))
    if most + (max_tokens or 0) > longest:
        param = "max_tokens" if most < longest else "messages" if isinstance(body, ChatBody) else "prompt"
        # LangChain goes by "prompt is too long", LiteLLM and others by the beginning.
        default = "" if body.model_fields_set & {"max_tokens", "max_completion_tokens"} else " (the default)"
        beside = f", and max_tokens={asked_for}{default} is beside it" if asked_for else ""
        why = f"the prompt {'is too long: it ' if most >= longest else ''}has {most}{beside}"
        raise TooLongError(f"This model's maximum context length is {longest} tokens; {why}.", param)
    drawn_logprobs = 0 if logprobs is None and body.made > body.n else logprobs  # by which the best ones are known
    drawing = read_drawing(body, words.defaults, tokenizer, vocabulary, drawn_logprobs)
    shows_prompt = echo and logprobs is not None
    requests = [
        Request(
            prompt=prompt,
            model=None if body.model == speech.base_name else body.model,
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            ignore_eos=body.ignore_eos,
            stop_ids=(*body.stop_token_ids, *(() if body.ignore_eos else (*speech.stop_ids, *ends))),
            sampling=drawing.choice(i),
            score_from=0 if i == 0 and (shows_prompt or body.prompt_logprobs is not None) else None,
            score_top=max(logprobs or 0, body.prompt_logprobs or 0),
            constraint=constraint,
            priority=body.priority,
        )
        for prompt in prompts
        for i in range(body.made)
    ]
    return AskedCompletions(
        requests=tuple(requests),
        n=body.made,
        shown=body.n,
        stops=tuple(body.stop) or words.stop_strings,
        includes_stop=body.include_stop_str_in_output,
        echo=echo,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        prompt_tokens=sum(len(prompt) for prompt in prompts),
        ends=stop_ids(requests[0], engine.base.ends),
    )
