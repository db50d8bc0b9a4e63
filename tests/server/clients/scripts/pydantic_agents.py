"""pydantic-ai: runs, streams, history, tools, and its three kinds of structured output."""

import json

from common import ADAPTERS, BASE, MODELS, V1, Animal, run
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput, UnexpectedModelBehavior, capture_run_messages
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=V1, api_key="none")
settings = {"temperature": 0, "max_tokens": 900, "parallel_tool_calls": False}


def agent(model, kind=OpenAIChatModel, **more):
    return Agent(kind(model, provider=provider), model_settings=settings, **more)


def runs():
    first = agent(BASE).run_sync("sum")
    assert first.output == "No tool." and first.usage.output_tokens > 0
    for model in MODELS:
        short = Agent(OpenAIChatModel(model, provider=provider), model_settings={"temperature": 0, "max_tokens": 12})
        assert short.run_sync("x", message_history=first.all_messages()).output is not None
    stream = agent(BASE).run_stream_sync("sum")
    assert "".join(stream.stream_text(delta=True)) == "No tool."


def tools():
    def add(a: int, **others: object) -> str:
        """Adds."""
        return "3"

    asked = agent(BASE, tools=[add])
    assert asked.run_sync("sum").output


def structured():
    for model in ADAPTERS:
        for kind in (ToolOutput, NativeOutput):
            assert isinstance(agent(model, output_type=kind(Animal)).run_sync("An animal.").output, Animal), kind


def prompted():
    """It asks for any JSON object and tells the schema in words, which a random model does not heed."""
    for model in ADAPTERS:
        with capture_run_messages() as messages:
            try:
                agent(model, output_type=PromptedOutput(Animal), retries=0).run_sync("An animal.")
            except UnexpectedModelBehavior as error:
                assert "output" in str(error) or "token limit" in str(error), error
        answer = messages[1]
        assert answer.finish_reason == "length" or isinstance(json.loads(answer.text), dict), answer


def responses():
    assert agent(BASE, OpenAIResponsesModel).run_sync("sum").output == "No tool."
    for model in ADAPTERS:
        assert isinstance(
            agent(model, OpenAIResponsesModel, output_type=NativeOutput(Animal)).run_sync("x").output, Animal
        )


run(runs, tools, structured, prompted, responses)
