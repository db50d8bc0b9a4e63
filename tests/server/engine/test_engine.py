"""The engine from outside: requests in, tokens out, equal to each request alone; nothing leaks, nobody else is harmed."""

import os
import random
import sys
import threading
import time
from queue import SimpleQueue

import pytest
import torch

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.packed_attention import PackedAttention, cache_rows
from graft.hub.adapters.serving_forms import CacheRows, InputRows, detours
from graft.hub.errors import ArtifactError, NotFoundError
from graft.hub.machine.atomic_files import STAGING
from graft.hub.registry.registry import Registry
from graft.server.adapters.resident import State
from graft.server.cache.tensors import block_bytes
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Finished, Request, Result
from graft.server.engine.scheduler import Scheduler
from graft.server.errors import BrokenError, ClosedError, EngineError, RequestError
from graft.server.runners.eager.hidden import Outputs
from graft.server.sampling.params import Sampling, Token
from graft.server.served_version import Served
from tests.server.live import ask

KINDS = ("lora", "lora-wide", "dora", "houlsby", "pfeiffer", "parallel", "bitfit", "ia3", "prompt", "prefix", "ptuning")
GREEDY = Sampling(temperature=0)


def reference(base, forms, tokens):
    """Log-probabilities [T, V] of one sequence run whole, alone, through the packed context."""
    stack = Stack([detours(forms)], base.dtype, base.device)

    def step(rows):
        return Step(stack, RowOwners(0, (rows,)), lm_head=base.spec.parts.lm_head)

    with torch.no_grad():
        prefix = next((form for form in forms if isinstance(form, CacheRows)), None)
        prompt = next((form for form in forms if isinstance(form, InputRows)), None)
        if prompt is not None:
            prefix = cache_rows(base, prompt.rows, step(len(prompt.rows)))
        start = prefix.text_start if prefix else 0
        positions = torch.arange(start, start + len(tokens))
        attention = PackedAttention([len(tokens)], [prefix], base.device)
        logits = base.forward(base.embed(torch.tensor(tokens)), positions, attention, step(len(tokens)))
    return logits.log_softmax(-1)


def prompts(count, seed=3, shortest=2, longest=40):
    rng = random.Random(seed)
    return [tuple(rng.randrange(2, 300) for _ in range(rng.randint(shortest, longest))) for _ in range(count)]


def assert_greedy(base, forms, prompt, result):
    """Every token is the most probable one after what came before (ties and rounding aside)."""
    logprobs = reference(base, forms, [*prompt, *result.ids])
    for i, token in enumerate(result.ids, start=len(prompt) - 1):
        assert logprobs[i, token] >= logprobs[i].max() - 1e-4


def assert_idle(engine):
    """Nothing is held but what resident adapters hold."""

    def under_way():
        coming = [r for r in engine.residency.snapshot() if r.state is not State.READY]
        held = [one for one in engine.loader.snapshot() if one.users]  # for who was cancelled while it was read
        return len(engine.ledger.scheduled) + engine.scheduler.running + len(coming) + len(held)

    deadline = time.monotonic() + 60  # on a busy machine what loads, further back than others, takes its time
    while ask(engine, under_way) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ask(engine, lambda: (engine.scheduler.running, engine.scheduler.waiting, len(engine.ledger.scheduled))) == (
        0,
        0,
        0,
    )
    assert ask(engine, lambda: engine.ledger.discrepancy()) is None
    assert all(loaded.users == 0 for loaded in engine.loader.snapshot())
    resident = {r.digest for r in engine.residency.snapshot()}
    assert engine.runner.adapters == resident


@pytest.fixture
def shelf(make_folder):
    def make(base, kinds=KINDS):
        return {kind: make_folder(kind, base, seed) for seed, kind in enumerate(kinds)}

    return make


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"], indirect=True)
def test_all_kinds_in_one_batch_equal_each_alone(base, make_forms, shelf):
    names = [None, *KINDS] * 2
    asked = [
        Request(prompt, model=name, max_tokens=8, ignore_eos=True, sampling=GREEDY)
        for name, prompt in zip(names, prompts(len(names)), strict=True)
    ]
    with Engine(base, shelf(base), options=Options(step_rows=64, max_running=16)) as engine:
        results = engine.generate(asked)
        assert_idle(engine)
    for request, result in zip(asked, results, strict=True):
        forms = make_forms(request.model, base, KINDS.index(request.model)) if request.model else ()
        assert len(result.ids) == 8 and result.finish_reason == "length"
        assert_greedy(base, forms, request.prompt, result)


@pytest.mark.parametrize("cache_blocks", [400, 14])
def test_a_seed_yields_the_same_alone_among_others_and_after_preemption(llama, shelf, cache_blocks):
    """On the kernels, whose rows don't depend on their neighbours even in the last bit."""
    rules = [
        Sampling(seed=1), Sampling(seed=2, top_p=0.9), Sampling(seed=3, top_k=20, temperature=1.5),
        Sampling(seed=-4, min_p=0.02, presence_penalty=0.5, frequency_penalty=0.1, repetition_penalty=1.2),
        Sampling(seed=5, logprobs=3), Sampling(seed=6, logit_bias=((9, 4.0),)),
    ]  # fmt: skip
    names = [None, "lora", "houlsby"]
    asked = [
        Request(prompt, names[i % 3], max_tokens=20, min_tokens=3, sampling=rules[i % len(rules)])
        for i, prompt in enumerate(prompts(18))
    ]
    folders = shelf(llama, ["lora", "houlsby"])
    with Engine(llama, folders, options=Options(runner="fast")) as engine:
        alone = [engine.generate([request])[0] for request in asked]
    room = cache_blocks * block_bytes(llama.spec, llama.dtype)
    with Engine(llama, folders, options=Options(runner="fast", max_running=8, cache_bytes=room)) as engine:
        together = engine.generate(asked[::-1])[::-1]
        assert (engine.scheduler.preemptions > 0) == (cache_blocks == 14)
        assert_idle(engine)
    assert [result.tokens for result in together] == [result.tokens for result in alone]
    assert len({result.tokens for result in alone}) == len(asked)


@pytest.mark.skipif(sys.platform != "linux", reason="sys.platform is not linux: threads have no priority of their own")
def test_loads_leave_the_cores_to_the_engine(llama, shelf):
    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with Engine(llama, shelf(llama, ["lora"])) as engine:
        told = SimpleQueue()
        engine.loader.prepare(lambda: told.put(priority()), told.put)
        assert ask(engine, priority) == priority()
        assert told.get(timeout=5) > priority()


def test_prompt_scores_equal_the_reference(llama, make_forms, shelf):
    with Engine(llama, shelf(llama, ["lora", "prompt"]), options=Options(step_rows=16, max_running=8)) as engine:
        for name, start in ((None, 0), ("lora", 5), ("prompt", 1)):
            prompt = prompts(1, seed=5, shortest=30)[0]
            request = Request(prompt, name, max_tokens=0, score_from=start, sampling=Sampling(logprobs=3))
            for _ in range(2):  # the second time with prefix hits, where scores allow
                result = engine.generate([request])[0]
                forms = make_forms(name, llama, ["lora", "prompt"].index(name)) if name else ()
                want = reference(llama, forms, list(prompt))
                first = max(1, start)
                assert [token.id for token in result.prompt] == list(prompt[first:])
                for i, token in enumerate(result.prompt, start=first):
                    assert token.logprob == pytest.approx(want[i - 1, token.id].item(), abs=1e-4)
                    assert [p for _, p in token.top] == pytest.approx(want[i - 1].topk(3).values.tolist(), abs=1e-4)
        assert_idle(engine)


def test_a_repeated_prompt_is_found_and_answers_the_same(llama, shelf):
    prompt = prompts(1, shortest=40)[0]
    with Engine(llama, shelf(llama, ["lora", "prefix"])) as engine:
        for name, cached in ((None, 32), ("lora", 32), ("prefix", 30)):  # 18 virtual rows: 14 tokens fill the 2nd block
            request = Request(prompt, name, max_tokens=5, ignore_eos=True, sampling=GREEDY)
            first, second = engine.generate([request])[0], engine.generate([request])[0]
            assert (first.cached_tokens, second.cached_tokens) == (0, cached)
            assert first.ids == second.ids
        assert_idle(engine)


def test_equal_prompts_in_one_batch_share_while_they_are_computed(llama, make_forms, shelf):
    prompt = prompts(1, shortest=40)[0]
    asked = [Request((*prompt, 7 + i), "lora", max_tokens=3, ignore_eos=True, sampling=GREEDY) for i in range(4)]
    with Engine(llama, shelf(llama, ["lora"])) as engine:
        results = engine.generate(asked)
    assert sum(result.cached_tokens > 0 for result in results) == 3
    for request, result in zip(asked, results, strict=True):
        assert_greedy(llama, make_forms("lora", llama, 0), request.prompt, result)


def test_preemption_loses_nothing(llama, make_forms, shelf):
    """A cache for about two sequences and ten of them: some give way, all answer as if alone."""
    options = Options(cache_bytes=14 * block_bytes(llama.spec, llama.dtype), step_rows=32, max_running=10)
    names = [None, "lora", "prefix", "prompt"]
    asked = [
        Request(prompt, names[i % 4], max_tokens=30, ignore_eos=True, sampling=GREEDY)
        for i, prompt in enumerate(prompts(10, longest=30))
    ]
    kinds = names[1:]
    with Engine(llama, shelf(llama, kinds), options=options) as engine:
        engine.generate(
            [Request((5, 6), name, max_tokens=1) for name in kinds]
        )  # so that none comes when others are done
        results = engine.generate(asked)
        assert engine.scheduler.preemptions > 0
        assert_idle(engine)
    for request, result in zip(asked, results, strict=True):
        forms = make_forms(request.model, llama, kinds.index(request.model)) if request.model else ()
        assert_greedy(llama, forms, request.prompt, result)


def test_more_adapters_than_the_device_holds(llama, make_forms, shelf):
    """A budget for about two adapters: the others take turns, all answer rightly."""
    with Engine(llama, shelf(llama), options=Options(device_bytes=45_000, max_running=8)) as engine:
        asked = [
            Request(prompt, KINDS[i % len(KINDS)], max_tokens=4, ignore_eos=True, sampling=GREEDY)
            for i, prompt in enumerate(prompts(2 * len(KINDS), longest=20))
        ]
        results = engine.generate(asked)
        assert engine.residency.evictions > 0
        assert engine.residency.bytes <= 45_000
        assert_idle(engine)
    for request, result in zip(asked, results, strict=True):
        assert_greedy(llama, make_forms(request.model, llama, KINDS.index(request.model)), request.prompt, result)


def test_an_adapter_without_room_stops_neither_the_base_nor_residents(llama, make_forms, shelf, monkeypatch):
    """Room for one adapter, which is running: who asks for another waits for it, and nobody else does."""
    folders = shelf(llama, ["lora", "lora-wide"])
    with Engine(llama, folders, options=Options(device_bytes=45_000, max_running=8)) as engine:
        for name in ("lora-wide", "lora"):  # both are in host memory, so that it is room alone that is waited for
            engine.generate([Request((5, 6), name, max_tokens=1)])
        told = SimpleQueue()  # of all, so that their order is known
        step = engine.runner.step
        monkeypatch.setattr(
            engine.runner, "step", lambda *asked: (time.sleep(0.01), step(*asked))[1]
        )  # loads are slower
        running = engine.submit(Request((5, 6, 7), "lora", max_tokens=240, ignore_eos=True), told)
        told.get()
        prompt = prompts(1)[0]
        without = engine.submit(Request(prompt, "lora-wide", max_tokens=4, ignore_eos=True, sampling=GREEDY), told)
        while not ask(engine, lambda: len(engine.residency._seekers)):
            time.sleep(0.001)
        others = [engine.submit(Request((8, 9), name, max_tokens=2, ignore_eos=True), told) for name in (None, "lora")]
        ended, tokens = [], []
        while len(ended) < 4:
            stream, event = told.get()
            if isinstance(event, Finished):
                ended.append(stream)
            elif isinstance(event, Token) and stream is without:
                tokens.append(event)
        assert set(ended[:2]) == set(others) and ended[2:] == [running, without]
        assert_greedy(llama, make_forms("lora-wide", llama, 1), prompt, Result(tuple(tokens), "length", Served()))
        assert_idle(engine)


def test_cancelling_frees_everything(llama, shelf):
    with Engine(llama, shelf(llama, ["lora", "prompt"]), options=Options(max_running=2, step_rows=16)) as engine:
        streams = [
            engine.submit(Request(prompt, name, max_tokens=200, ignore_eos=True))
            for prompt, name in zip(prompts(6), [None, "lora", "prompt"] * 2, strict=True)
        ]
        next(iter(streams[0]))
        for stream in streams:
            stream.cancel()
        assert all(stream.result().finish_reason == "cancelled" for stream in streams)
        assert_idle(engine)


def test_a_new_version_of_a_folder_serves_the_next_request(llama, make_folder, make_forms):
    folder = make_folder("lora", llama, 1, name="mine")
    prompt = prompts(1, shortest=20)[0]
    with Engine(llama, {"mine": folder}) as engine:
        ask = Request(prompt, "mine", max_tokens=6, ignore_eos=True, sampling=GREEDY)
        old = engine.generate([ask])[0]
        make_folder("lora", llama, 2, name="mine")
        new = engine.generate([ask])[0]
        assert old.served.digest != new.served.digest
        assert_greedy(llama, make_forms("lora", llama, 1), prompt, old)
        assert_greedy(llama, make_forms("lora", llama, 2), prompt, new)
        assert_idle(engine)


def test_a_failing_step_fails_only_its_requests(llama, monkeypatch):
    with Engine(llama) as engine:
        healthy = engine.runner.outputs
        monkeypatch.setattr(engine.runner, "outputs", lambda batch: (_ for _ in ()).throw(RuntimeError("device lost")))
        with pytest.raises(EngineError, match="device lost"):
            engine.generate([Request((5, 6, 7), max_tokens=3)])
        monkeypatch.setattr(engine.runner, "outputs", healthy)
        assert len(engine.generate([Request((5, 6, 7), max_tokens=3, ignore_eos=True)])[0].ids) == 3
        assert_idle(engine)


def test_logits_that_are_not_finite_fail_their_request_alone(llama, make_folder, monkeypatch):
    with Engine(llama, {"a": make_folder("lora", llama, 1)}) as engine:
        healthy = engine.runner.outputs

        def broken(batch):
            logits = healthy(batch).logits.clone()
            logits[sum(batch.logit_lengths[:1]) :] = float("nan")
            return Outputs(logits)

        monkeypatch.setattr(engine.runner, "outputs", broken)
        good = engine.submit(Request((5, 6, 7), max_tokens=20, ignore_eos=True))
        with pytest.raises(EngineError, match="not finite"):
            engine.generate([Request((5, 6, 7), "a", max_tokens=3)])
        assert len(good.result().ids) == 20


def test_broken_adapters_fail_while_others_go_on(llama, make_folder):
    """A loader's fault is its requesters' alone, and says what is wrong."""
    good, nan = make_folder("lora", llama, 1), make_folder("lora", llama, 2, name="cut")
    weights = nan / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with Engine(llama, {"good": good, "cut": nan}) as engine:
        running = engine.submit(Request((5, 6, 7), "good", max_tokens=60, ignore_eos=True))
        for _ in range(2):  # the second time from memory
            with pytest.raises(ArtifactError, match="cut off"):
                engine.generate([Request((5, 6, 7), "cut")])
        with pytest.raises(NotFoundError, match="no model 'absent'"):
            engine.generate([Request((5, 6, 7), "absent")])
        assert len(running.result().ids) == 60
        assert_idle(engine)


def test_requests_that_can_not_be_served_are_refused_at_once(llama):
    with Engine(llama) as engine:
        for request, match in (
            (Request(()), "empty"),
            (Request((5, 300)), "vocabulary"),
            (Request((5, 6), stop_ids=(7, 300)), "ends the text lies outside the base's vocabulary"),
            (Request((5, 6), stop_ids=(-1,)), "vocabulary"),
            (Request((5,) * 250, max_tokens=20), "maximum context length is 256"),
        ):
            with pytest.raises(RequestError, match=match):
                engine.submit(request)


def test_sampling_follows_its_rules(llama):
    eos = llama.tokenizer.eos_token_id
    with Engine(llama) as engine:

        def ids(**options):
            sampling = {key: options.pop(key) for key in ("temperature", "top_p", "top_k", "seed") if key in options}
            request = Request((5, 6, 7), max_tokens=30, sampling=Sampling(**sampling), **options)
            return engine.generate([request])[0].ids

        assert ids(seed=4, ignore_eos=True) == ids(seed=4, ignore_eos=True) != ids(seed=5, ignore_eos=True)
        greedy = ids(temperature=0, ignore_eos=True)
        assert ids(top_k=1, ignore_eos=True) == ids(top_p=1e-9, ignore_eos=True) == greedy
        stop = greedy[3]
        assert ids(temperature=0, ignore_eos=True, stop_ids=(stop,)) == greedy[: greedy.index(stop) + 1]
        late = ids(temperature=0, min_tokens=10, stop_ids=(stop, greedy[0]))
        assert not {stop, greedy[0], eos} & set(late[:10])
        assert engine.generate([Request((5, 6, 7), max_tokens=0)])[0].ids == []


def test_a_requests_client_weight_and_priority_are_its_sequences(llama, monkeypatch):
    added, add = [], Scheduler.add
    monkeypatch.setattr(Scheduler, "add", lambda scheduler, one: (added.append(one), add(scheduler, one)))
    with Engine(llama) as engine:
        engine.submit(Request((5, 6), max_tokens=1, client="ann", weight=3.0, priority=-2)).result()
    assert [(one.client, one.weight, one.priority) for one in added] == [("ann", 3.0, -2)]


def test_closing_ends_requests_under_way(llama):
    engine = Engine(llama)
    stream = engine.submit(Request((5, 6, 7), max_tokens=240, ignore_eos=True))
    next(iter(stream))
    engine.close()
    with pytest.raises(ClosedError, match="shutting down"):
        stream.result()
    with pytest.raises(ClosedError, match="shutting down"):
        engine.submit(Request((5,)))


def test_a_question_that_raises_reaches_who_asked(llama):
    with Engine(llama) as engine:
        with pytest.raises(BrokenError, match="ZeroDivisionError"):
            ask(engine, lambda: 1 // 0)
        assert ask(engine, lambda: 7) == 7
    with pytest.raises(ClosedError):
        ask(engine, lambda: 7)


def test_a_lookup_that_breaks_fails_its_own_request_only(llama, monkeypatch):
    """A hub that answers nonsense: any exception of a look-up becomes the request's error."""
    with Engine(llama) as engine:

        def nonsense(name):
            raise ValueError("not JSON")

        monkeypatch.setattr(engine.library, "locate_at_once", nonsense)
        with pytest.raises(BrokenError, match="not JSON"):
            engine.generate([Request((5, 6), "ann/news", max_tokens=2)])
        assert len(engine.generate([Request((5, 6), max_tokens=2, ignore_eos=True)])[0].ids) == 2
        assert_idle(engine)


def test_all_spellings_of_a_repository_are_one_adapter(llama, make_folder, tmp_path):
    """Who asks for NS/name, ns/NAME or ns/name@rev makes no new names in metrics and lists."""
    registry = Registry(tmp_path / "registry.db")
    registry.add_base(llama.spec)
    revision = registry.publish(make_folder("lora", llama), "ann/news").id
    with Engine(llama, shelf=registry) as engine:
        for name in ("ann/news", "ANN/news", "ann/NEWS", f"ann/news@{revision}", f"Ann/news@{revision[:9]}"):
            assert engine.generate([Request((5, 6), name, max_tokens=1)])
        assert list(engine.loader.served()) == ["ann/news"]
        assert engine.loader.stats.misses == 1


def test_a_folder_that_is_written_while_it_is_read_is_read_again(llama, make_folder):
    folder = make_folder("lora", llama, 1)
    weights = folder / "adapter_model.safetensors"
    writing = folder / STAGING
    writing.mkdir()
    new = writing / weights.name
    weights.rename(new)  # as a writer that has begun to move its files

    def end():
        new.rename(weights)
        writing.rmdir()

    with Engine(llama, {"a": folder}) as engine:
        threading.Timer(0.2, end).start()
        assert engine.generate([Request((5, 6, 7), "a", max_tokens=2, ignore_eos=True)])[0].ids
