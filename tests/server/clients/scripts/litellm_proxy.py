"""litellm's proxy between the client and the server: it lists the models, and passes chats, streams, tools, schemas and errors on."""

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

from common import ADAPTERS, ARGUMENTS, BASE, LEARNED_TOOL, MODELS, SUM, TOOL, V1, Animal, run, said
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

    def refusals():
        try:
            client.chat.completions.create(model=BASE, messages=[{"role": "user", "content": "a" * 20_000}])
        except BadRequestError as error:
            assert "context" in str(error), error
        else:
            raise AssertionError("a text of 20,000 tokens was taken")

    run(models, chats, tools, schemas, refusals)
