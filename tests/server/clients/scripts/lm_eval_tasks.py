"""lm-eval: log-likelihoods and generation over completions, generation over chats; the numbers are those of plain requests."""

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
    return LocalCompletionsAPI(
        base_url=f"{V1}/completions",
        model=model,
        tokenizer_backend="remote",
        tokenized_requests=True,
        max_length=512,
        **more,
    )


def likelihoods():
    for model in (BASE, *ADAPTERS):
        asked = [Instance("loglikelihood", {}, (one["question"], " yes"), i) for i, one in enumerate(QUESTIONS)]
        for (told, _), one in zip(local(model).loglikelihood(asked), QUESTIONS, strict=True):
            plain = post(
                "/v1/completions",
                {"model": model, "prompt": one["question"] + " yes", "max_tokens": 0, "echo": True, "logprobs": 1},
            )
            expected = sum(plain["choices"][0]["logprobs"]["token_logprobs"][-4:])
            assert abs(told - expected) < 1e-3, (told, expected)


def tasks():
    for model in (BASE, ADAPTERS[0]):
        made = simple_evaluate(model=local(model), tasks=[CHOICES, TEXTS], bootstrap_iters=0)
        assert 0 <= made["results"]["odd"]["acc,none"] <= 1 and "said" in made["results"]


def chats():
    chat = LocalChatCompletion(base_url=f"{V1}/chat/completions", model=BASE, tokenized_requests=False)
    made = simple_evaluate(model=chat, tasks=[TEXTS], apply_chat_template=True, bootstrap_iters=0)
    assert "said" in made["results"]


assert URL
run(likelihoods, tasks, chats)
