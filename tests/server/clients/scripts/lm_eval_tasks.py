"""lm-eval: log-likelihoods, rolling ones and generation over completions, of token ids and of text, and generation over chats; the
numbers are those of plain requests."""

import json
from pathlib import Path

from common import ADAPTERS, BASE, URL, V1, post, run
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

QUESTIONS = [{"question": f"Is {i} odd?", "answer": i % 2} for i in range(6)]
Path("questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
DATA = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}}, "test_split": "test"}
CHOICES = {
    **DATA, "task": "odd", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": ["no", "yes"],
    "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
}  # fmt: skip
TEXTS = {
    **DATA, "task": "said", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "yes",
    "generation_kwargs": {"until": ["zz"], "max_gen_toks": 8, "temperature": 0}, "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip


def local(model, **more):
    how = {"tokenizer_backend": "remote", "tokenized_requests": True} | more
    return LocalCompletionsAPI(base_url=f"{V1}/completions", model=model, max_length=512, **how)


def scored(model, prompt):
    """Log-probabilities of a prompt's tokens from the second on."""
    asked = {"model": model, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1}
    return post("/v1/completions", asked)["choices"][0]["logprobs"]["token_logprobs"][1:]


def likelihoods():
    for model in (BASE, *ADAPTERS):
        asked = [Instance("loglikelihood", {}, (one["question"], " yes"), i) for i, one in enumerate(QUESTIONS)]
        for (told, _), one in zip(local(model).loglikelihood(asked), QUESTIONS, strict=True):
            expected = sum(scored(model, one["question"] + " yes")[-4:])
            assert abs(told - expected) < 1e-3, (told, expected)


def rolling():
    for model in (BASE, *ADAPTERS):
        client = local(model)
        texts = [one["question"] * 3 for one in QUESTIONS]
        asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
        for told, text in zip(client.loglikelihood_rolling(asked), texts, strict=True):
            expected = sum(scored(model, [client.prefix_token_id, *client.tok_encode(text)]))
            assert abs(told - expected) < 1e-3, (told, expected)


def texts():
    for model in (BASE, *ADAPTERS):
        client = local(model, tokenizer_backend=None, tokenized_requests=False)
        settings = TEXTS["generation_kwargs"]
        asked = [Instance("generate_until", {}, (one["question"], settings), i) for i, one in enumerate(QUESTIONS)]
        for made, one in zip(client.generate_until(asked), QUESTIONS, strict=True):
            plain = {"model": model, "prompt": one["question"], "max_tokens": 8, "temperature": 0, "stop": ["zz"]}
            assert made == post("/v1/completions", plain)["choices"][0]["text"]


def tasks():
    for model in (BASE, ADAPTERS[0]):
        made = simple_evaluate(model=local(model), tasks=[CHOICES, TEXTS], bootstrap_iters=0)
        assert 0 <= made["results"]["odd"]["acc,none"] <= 1 and "said" in made["results"]


def chats():
    chat = LocalChatCompletion(base_url=f"{V1}/chat/completions", model=BASE, tokenized_requests=False)
    made = simple_evaluate(model=chat, tasks=[TEXTS], apply_chat_template=True, bootstrap_iters=0)
    assert "said" in made["results"]


assert URL
run(likelihoods, rolling, texts, tasks, chats)
