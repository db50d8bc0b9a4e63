"""A tiny base that has learned a few answers by heart: calls of a tool, thought, text."""

import torch

from graft.hub.base.model import Base
from graft.hub.chat.conversation import BaseTemplate, Conversation
from tests.conftest import tiny_model, tiny_tokenizer

BASE = "test/llama"
TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }}{% endfor %}<tool_call>{% endif %}{% for m in messages %}[{{ m.role[0] }}]{% if m.reasoning_content %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }}{{ c.function.arguments | tojson }}>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
]
ASK = [{"role": "user", "content": "sum"}]
CALLS = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "é": [2]}}\n</tool_call>'
TWO = CALLS + '\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
PAST = [
    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
]
ANSWERED = [
    *ASK,
    {"role": "assistant", "content": None, "tool_calls": PAST},
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
]
# (tools, messages) -> what the base has learned to answer
LEARNED = [
    (True, ASK, CALLS),
    (True, [{"role": "user", "content": "two"}], TWO),
    (True, ANSWERED, "It is 3."),
    (False, ASK, "<think>\nHm.\n</think>\n\nNo tool."),
]


def learned_base() -> Base:
    """Overfitted: each answer is what follows its prompt, to the letter."""
    tokenizer, model = tiny_tokenizer(), tiny_model("llama")
    tokenizer.chat_template = TEMPLATE
    texts = []
    for with_tools, turns, answer in LEARNED:
        past = [{**turn, "content": turn["content"] or ""} for turn in turns]
        for turn in past:
            for call in turn.get("tool_calls", ()):
                turn["tool_calls"] = [{"function": {"name": call["function"]["name"], "arguments": {"a": 1}}}]
        prompt = BaseTemplate(tokenizer).render(Conversation(past, TOOLS if with_tools else ()))
        texts.append((tokenizer.encode(prompt), [*tokenizer.encode(answer), tokenizer.eos_token_id]))
    longest = max(len(prompt) + len(answer) for prompt, answer in texts)
    ids = torch.full((len(texts), longest), 1)
    labels = torch.full((len(texts), longest), -100)
    for row, (prompt, answer) in enumerate(texts):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    torch.manual_seed(0)
    for _ in range(900):
        loss = model(input_ids=ids, labels=labels).loss
        if loss < 2e-3:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 1e-2
    return Base(model.eval(), tokenizer, id=BASE)
