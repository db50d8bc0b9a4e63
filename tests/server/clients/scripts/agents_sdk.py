"""openai-agents: runs, streams, tools, handoffs, output types, over chats and over Responses."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from common import ADAPTERS, BASE, V1, Animal, run
from openai import AsyncOpenAI

set_tracing_disabled(True)
wait = asyncio.new_event_loop().run_until_complete  # of one loop, as the client's connections are
client = AsyncOpenAI(base_url=V1, api_key="none", max_retries=0)
KINDS = (OpenAIChatCompletionsModel, OpenAIResponsesModel)


def agent(kind, model, **more):
    given = {"temperature": 0, "max_tokens": 900} | more.pop("settings", {})
    return Agent(
        name=more.pop("name", "a"),
        model=kind(model=model, openai_client=client),
        model_settings=ModelSettings(**given),
        **more,
    )


@function_tool(strict_mode=False)
def add(a: int) -> str:
    """Adds."""
    return "3"


def runs():
    for kind in KINDS:
        assert wait(Runner.run(agent(kind, BASE), "sum")).final_output == "No tool."


def streams():
    async def text(kind):
        result = Runner.run_streamed(agent(kind, BASE), "sum")
        async for _ in result.stream_events():
            pass
        return result.final_output

    for kind in KINDS:
        assert wait(text(kind)) == "No tool."


def tools():
    for kind in KINDS:
        made = wait(Runner.run(agent(kind, BASE, tools=[add]), "sum", max_turns=3))
        assert any(item.type == "tool_call_output_item" for item in made.new_items), made.new_items


def handoffs():
    for kind in KINDS:
        for model in ADAPTERS:
            other = agent(kind, model, name="b", output_type=Animal)
            first = agent(kind, BASE, handoffs=[other], settings={"tool_choice": "transfer_to_b"})
            made = wait(Runner.run(first, "x", max_turns=3))
            assert made.last_agent is other and isinstance(made.final_output, Animal)


def outputs():
    for kind in KINDS:
        for model in ADAPTERS:
            assert isinstance(wait(Runner.run(agent(kind, model, output_type=Animal), "x")).final_output, Animal)


run(runs, streams, tools, handoffs, outputs)
