"""litellm's proxy between the client and the server: it lists the models, and passes chats, streams, tools, schemas, completions,
Responses, Messages and errors on."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from common import ADAPTERS, ARGUMENTS, BASE, LEARNED_TOOL, MODELS, SUM, TOOL, V1, Animal, post, run, said
from openai import BadRequestError, OpenAI

START_S = 120
KEY = f"sk-{secrets.token_hex(32)}"  # it refuses to be everybody's


@contextmanager
def proxy():
    """The address of one that knows the server's models."""
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": V1, "api_key": "none"}}
        for name in MODELS
    ]
    Path("proxy.yaml").write_text(json.dumps({"model_list": models}))  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        Path(sys.executable).with_name("litellm"),
        "--config",
        "proxy.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with Path("proxy.log").open("w") as log:
        environment = os.environ | {"LITELLM_MASTER_KEY": KEY}
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait(running, f"http://127.0.0.1:{port}/health/liveliness")
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(30)


def wait(running, url):
    until = time.monotonic() + START_S
    while True:
        assert running.poll() is None and time.monotonic() < until, Path("proxy.log").read_text()[-4000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)


with proxy() as url:
    client = OpenAI(base_url=url, api_key=KEY, max_retries=0)

    def models():
        assert {model.id for model in client.models.list()} == set(MODELS)

    def chats():
        for model in MODELS:
            asked = {"model": model, "messages": SUM, "temperature": 0, "max_tokens": 12}
            assert client.chat.completions.create(**asked).choices[0].message.content == said(model)
            chunks = client.chat.completions.create(**asked, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == said(model)

    def tools():
        made = client.chat.completions.create(model=BASE, messages=SUM, tools=[LEARNED_TOOL], temperature=0)
        [call] = made.choices[0].message.tool_calls
        assert call.function.name == "add" and json.loads(call.function.arguments) == ARGUMENTS
        for model in ADAPTERS:
            forced = client.chat.completions.create(
                model=model, messages=SUM, tools=[TOOL], tool_choice="required", max_tokens=600,
                parallel_tool_calls=False,
            )  # fmt: skip
            assert 0 <= json.loads(forced.choices[0].message.tool_calls[0].function.arguments)["a"] <= 9

    def schemas():
        for model in ADAPTERS:
            made = client.beta.chat.completions.parse(model=model, messages=SUM, response_format=Animal, max_tokens=600)
            assert made.choices[0].message.parsed.kind in ("cat", "dog")

    def completions():
        for model in MODELS:
            asked = {"model": model, "prompt": "One", "temperature": 0, "max_tokens": 8}
            text = post("/v1/completions", asked)["choices"][0]["text"]
            assert client.completions.create(**asked).choices[0].text == text
            chunks = client.completions.create(**asked, stream=True)
            assert "".join(one.choices[0].text or "" for one in chunks) == text  # it has null at the end

    def responses():
        for model in MODELS:
            asked = {"model": model, "input": "sum", "temperature": 0, "max_output_tokens": 40}
            plain = post("/v1/responses", asked)["output"]
            [text] = [item["content"][0]["text"] for item in plain if item["type"] == "message"]
            assert client.responses.create(**asked).output_text == text
            with client.responses.create(**asked, stream=True) as events:
                assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == text

    def messages():
        for model in MODELS:
            asked = {"model": model, "messages": SUM, "temperature": 0, "max_tokens": 40}
            body, headers = json.dumps(asked).encode(), {"x-api-key": KEY, "Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/messages", body, headers)) as response:
                made = json.load(response)
            expected = [block["text"] for block in post("/v1/messages", asked)["content"] if block["type"] == "text"]
            assert [block["text"] for block in made["content"] if block["type"] == "text"] == expected, made

    def refusals():
        try:
            client.chat.completions.create(model=BASE, messages=[{"role": "user", "content": "a" * 20_000}])
        except BadRequestError as error:
            assert "context" in str(error), error
        else:
            raise AssertionError("a text of 20,000 tokens was taken")

    run(models, chats, tools, schemas, completions, responses, messages, refusals)
