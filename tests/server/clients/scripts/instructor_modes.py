"""instructor: its modes whose answers are held to the schema, whole and in parts."""

import instructor
from common import ADAPTERS, V1, Animal, run
from instructor import Mode
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


run(whole, parts)
