"""instructor: its modes whose answers are held to the schema, whole and in parts, and those that only ask for it."""

import json

import instructor
from common import ADAPTERS, V1, Animal, run
from instructor import Mode
from instructor.core import IncompleteOutputException, InstructorRetryException
from openai import OpenAI

plain = [{"role": "user", "content": "An animal, please."}]
MODES = (Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA, Mode.RESPONSES_TOOLS)


def client(mode):
    return instructor.from_openai(OpenAI(base_url=V1, api_key="none", max_retries=0), mode=mode)


def whole():
    for mode in MODES:
        for model in ADAPTERS:
            limit = {"max_output_tokens": 900} if mode is Mode.RESPONSES_TOOLS else {"max_tokens": 900}
            made = client(mode).create(model=model, messages=plain, response_model=Animal, max_retries=1, **limit)
            assert isinstance(made, Animal), mode


def parts():
    for model in ADAPTERS:
        made = [*client(Mode.TOOLS).create_partial(model=model, messages=plain, response_model=Animal, max_tokens=900)]
        assert Animal.model_validate(made[-1].model_dump())


def objects():
    """JSON asks for any object and tells the schema in words, which a random model does not heed."""
    for model in ADAPTERS:
        try:
            client(Mode.JSON).create(model=model, messages=plain, response_model=Animal, max_retries=0, max_tokens=900)
        except (IncompleteOutputException, InstructorRetryException) as error:
            [choice] = error.last_completion.choices
            assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict), choice


def marked():
    """MD_JSON asks for nothing but text, which is held to a fenced block by a field of our own."""
    fenced = {"structured_outputs": {"regex": r"```json\n\{\"kind\": \"(cat|dog)\", \"legs\": [0-9]\}\n```"}}
    for model in ADAPTERS:
        made = client(Mode.MD_JSON).create(
            model=model, messages=plain, response_model=Animal, max_retries=0, max_tokens=100, extra_body=fenced
        )
        assert isinstance(made, Animal)


run(whole, parts, objects, marked)
