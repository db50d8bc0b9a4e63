"""llama-index's OpenAILike: chats, streams, completions, tools, structured output."""

import asyncio

from common import ADAPTERS, BASE, MODELS, V1, Animal, run, said
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

plain = [{"role": "user", "content": "Where do bees live?"}]
turns = [ChatMessage(role="user", content="Where do bees live?")]


def llm(model, **more):
    settings = {"temperature": 0, "max_tokens": 12, "is_chat_model": True, "is_function_calling_model": True} | more
    return OpenAILike(model=model, api_base=V1, api_key="none", context_window=8192, max_retries=0, **settings)


def add(a: int) -> str:
    """Adds."""
    return "3"


def chats():
    for model in MODELS:
        assert llm(model).chat(turns).message.content == said(model, plain)
        assert [*llm(model).stream_chat(turns)][-1].message.content == said(model, plain)
        assert asyncio.run(llm(model).achat(turns)).message.content == said(model, plain)
    told = llm(ADAPTERS[0], logprobs=True, top_logprobs=2).chat(turns)
    assert 1 <= len(told.logprobs) <= 12


def completions():
    text = llm(ADAPTERS[0], is_chat_model=False)
    assert text.complete("One").text == [*text.stream_complete("One")][-1].text


def tools():
    tool = FunctionTool.from_defaults(add)
    made = llm(BASE, max_tokens=100).chat_with_tools([tool], user_msg="sum")
    [call] = llm(BASE).get_tool_calls_from_response(made)
    assert call.tool_name == "add" and call.tool_kwargs["a"] == 1
    for model in ADAPTERS:
        forced = llm(model, max_tokens=600).chat_with_tools(
            [tool], user_msg="x", tool_required=True, allow_parallel_tool_calls=False
        )
        assert forced.message.additional_kwargs.get("tool_calls") or forced.message.blocks


def structured():
    for model in ADAPTERS:
        made = llm(model, max_tokens=600, should_use_structured_outputs=True).as_structured_llm(Animal).chat(turns)
        assert isinstance(made.raw, Animal)


run(chats, completions, tools, structured)
