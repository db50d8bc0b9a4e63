"""langchain-openai: chats, streams, batches, tools, structured output by all three ways, an agent, completions, embeddings."""

import json

from common import ADAPTERS, ARGUMENTS, BASE, MODELS, SUM, V1, Animal, run, said
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

plain = [{"role": "user", "content": "Where do bees live?"}]


def chat(model, **more):
    return ChatOpenAI(
        model=model, base_url=V1, api_key="none", max_retries=0, **{"temperature": 0, "max_tokens": 12} | more
    )


@tool
def add(a: int) -> str:
    """Adds."""
    return "3"


def chats():
    for model in MODELS:
        assert chat(model).invoke(plain).content == said(model, plain)
        assert "".join(chunk.content for chunk in chat(model).stream(plain)) == said(model, plain)
    assert [one.content for one in chat(ADAPTERS[0]).batch([plain, SUM])] == [
        said(ADAPTERS[0], plain),
        said(ADAPTERS[0], SUM),
    ]
    told = chat(ADAPTERS[0], logprobs=True).invoke(plain)
    assert 1 <= len(told.response_metadata["logprobs"]["content"]) <= told.usage_metadata["output_tokens"] <= 12


def tools():
    answer = chat(BASE, max_tokens=None).bind_tools([add]).invoke(SUM)
    assert [call["name"] for call in answer.tool_calls + answer.invalid_tool_calls] == ["add"]
    for model in ADAPTERS:
        bound = chat(model, max_tokens=600).bind_tools([Animal], tool_choice="Animal", parallel_tool_calls=False)
        [call] = bound.invoke(plain).tool_calls
        Animal.model_validate(call["args"])


def structured():
    for model in ADAPTERS:
        for method in ("json_schema", "function_calling"):
            made = chat(model, max_tokens=600).with_structured_output(Animal, method=method).invoke(plain)
            assert isinstance(made, Animal), method


def agents():
    made = create_agent(chat(BASE, max_tokens=100), [add]).invoke({"messages": SUM})
    assert [type(one).__name__ for one in made["messages"]][:3] == ["HumanMessage", "AIMessage", "ToolMessage"], made
    assert json.loads(json.dumps(made["messages"][1].tool_calls[0]["args"])) == ARGUMENTS


def other_routes():
    assert OpenAI(model=ADAPTERS[0], base_url=V1, api_key="none", max_tokens=5, temperature=0).invoke("One")
    answer = ChatOpenAI(model=BASE, base_url=V1, api_key="none", temperature=0, use_responses_api=True).invoke("sum")
    assert answer.text == "No tool."
    vectors = OpenAIEmbeddings(model=ADAPTERS[0], base_url=V1, api_key="none", check_embedding_ctx_length=False)
    assert len(vectors.embed_documents(["a", "b"])) == 2 and len(vectors.embed_query("a")) == 32


def refusals():
    try:
        chat(BASE).invoke("a" * 20_000)
    except ContextOverflowError:
        pass
    else:
        raise AssertionError("a text of 20,000 tokens was taken")


run(chats, tools, structured, agents, other_routes, refusals)
