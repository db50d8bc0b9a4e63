"""The scheduler against a pretended engine: everything ends, nobody starves, no block is lost."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.server.adapters.readiness import VirtualRows
from graft.server.cache.blocks import BlockPool
from graft.server.cache.step import BLOCK_ROWS
from graft.server.engine.scheduler import PlanError, Scheduler
from graft.server.engine.sequence import SequenceState
from graft.server.operations.step_pace import StepPace


def run(scheduler, lengths, limit=3000, cancel=lambda step: ()):
    """Carry out plans until nothing is left; returns the order in which sequences ended. lengths: sequence -> new."""
    ended, left = [], dict(lengths)
    for step in range(limit):
        for sequence in cancel(step):
            if left.pop(sequence, None) is not None:
                scheduler.remove(sequence)
        plan = scheduler.plan()
        assert plan.rows == sum(chunk.count for chunk in plan.chunks) <= scheduler.step_rows
        seen = set()
        for chunk in plan.chunks:
            sequence, stop = chunk.sequence, chunk.start + chunk.count
            assert sequence not in seen and chunk.count > 0
            seen.add(sequence)
            table = chunk.run().blocks
            assert len(set(table)) == len(table) >= -(-(sequence.virtual.count + stop) // BLOCK_ROWS)
        owned = [block for sequence in scheduler._running for block in sequence.blocks]
        assert scheduler.blocks.used == len(set(owned))
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.remaining == 0:
                left[sequence] -= 1
                sequence.tokens.append(step % 7)
                if left[sequence] == 0:
                    ended.append(sequence)
                    del left[sequence]
                    scheduler.remove(sequence)
        if not left:
            return ended
        assert plan.chunks, "nothing runs and something is left"
    raise AssertionError(f"{len(left)} sequences never ended")


def sequence(prompt, new, owner=None, virtual=0):
    blocks = tuple(range(1000, 1000 + -(-virtual // BLOCK_ROWS)))
    return SequenceState(
        owner=owner,
        tokens=[(7 * i) % 11 for i in range(prompt)],
        max_new=new,
        logits_from=prompt - 1,
        virtual=VirtualRows(virtual, virtual, blocks),
        client=owner,
    )


asked = st.tuples(
    st.integers(1, 60), st.integers(1, 40), st.sampled_from([None, "a", "b", "c"]), st.sampled_from([0, 5, 16, 21])
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(asked, min_size=1, max_size=25), st.integers(8, 40), st.integers(2, 12), st.integers(16, 64), st.randoms()
)
def test_everything_ends_and_no_block_is_lost(requests, count, running, rows, rng):
    scheduler = Scheduler(BlockPool(count), pace=StepPace(rows, rows), max_running=running)
    lengths = {sequence(*one): one[1] for one in requests}
    lengths = {s: new for s, new in lengths.items() if s.blocks_for(s.cost) <= count - 1}
    doomed = [s for s in lengths if rng.random() < 0.2]
    for one in lengths:
        scheduler.add(one)
    run(scheduler, lengths, cancel=lambda step: [s for s in doomed if rng.random() < 0.1]) if lengths else None
    assert scheduler.blocks.used == 0 and (scheduler.running, scheduler.waiting) == (0, 0)


def test_a_small_tenant_does_not_wait_behind_a_large_one():
    scheduler = Scheduler(BlockPool(2000), pace=StepPace(64, 64), max_running=4)
    flood = [sequence(40, 10, "flood") for _ in range(100)]
    small = [sequence(10, 5, "small") for _ in range(3)]
    for one in (*flood, *small):
        scheduler.add(one)
    order = run(scheduler, {s: s.max_new for s in (*flood, *small)})
    assert max(order.index(one) for one in small) < 15


@pytest.mark.parametrize("weights", [(1, 1), (3, 1)])
def test_clients_start_as_many_as_their_weights_say(weights):
    scheduler = Scheduler(BlockPool(20_000), pace=StepPace(512, 512), max_running=16)
    for number in range(600):
        for name, weight in zip("ab", weights, strict=True):
            one = sequence(10, 5 + number % 7, name)
            one.weight = weight
            scheduler.add(one)
    started = set()
    while len(started) < 400:
        started.update(advance(scheduler))
    shares = Counter(one.client for one in started)
    assert 0.9 < shares["a"] / shares["b"] * weights[1] / weights[0] < 1.1


def test_an_urgent_sequence_overtakes_its_own_clients_and_no_other_ones():
    scheduler = Scheduler(BlockPool(2000), pace=StepPace(64, 64), max_running=1)
    waiting = [sequence(10, 3, "one") for _ in range(11)]
    urgent, others = sequence(10, 3, "one"), [sequence(10, 3, "two") for _ in range(2)]
    urgent.priority, others[1].priority = -1, 1
    for one in (*waiting, *others):
        scheduler.add(one)
    scheduler.plan()  # the first one of either client runs, the other as a guest
    scheduler.add(urgent)
    gone = sequence(10, 3, "one")
    gone.priority = -2
    scheduler.add(gone)
    scheduler.remove(gone)
    for first in (waiting[0], others[0]):
        scheduler.remove(first)
    left = [*waiting[1:], urgent, others[1]]
    order = run(scheduler, {s: s.max_new for s in left})
    own = [one for one in order if one.client == "one"]
    assert own == [urgent, *waiting[1:]] and order.index(others[1]) <= 1


def test_decoding_goes_on_while_a_long_prompt_is_worked_through():
    scheduler = Scheduler(BlockPool(2000), pace=StepPace(32, 32), max_running=8)
    talker, reader = sequence(4, 50, "talker"), sequence(400, 1, "reader")
    scheduler.add(talker)
    scheduler.plan()
    talker.tokens.append(1)
    scheduler.add(reader)
    for _ in range(8):
        counts = {chunk.sequence: chunk.count for chunk in scheduler.plan().chunks}
        assert counts == {talker: 1, reader: 31}
        talker.tokens.append(1)


def test_what_steps_aside_takes_no_more_of_a_step_than_those_that_decode():
    scheduler = Scheduler(BlockPool(2000), pace=StepPace(64, 64), max_running=8, prefix_sharing=False)
    talkers = [sequence(4, 50, name) for name in ("a", "b", "c")]
    proofs = [sequence(30, 1, "proof") for _ in range(2)]
    for one in proofs:
        one.steps_aside = True
        scheduler.add(one)
    assert {c.sequence: c.count for c in scheduler.plan().chunks} == dict.fromkeys(proofs, 30)  # nobody else is there
    for one in (*proofs, *talkers):
        scheduler.remove(one) if one in proofs else scheduler.add(one)
    scheduler.plan()
    proofs = [sequence(30, 1, "proof") for _ in range(2)]
    for one in proofs:
        one.steps_aside = True
        scheduler.add(one)
    done = Counter()
    for _ in range(20):
        for talker in talkers:
            talker.tokens.append(1)
        counts = {chunk.sequence: chunk.count for chunk in scheduler.plan().chunks}
        assert all(counts.pop(talker) == 1 for talker in talkers)
        assert sum(counts.values()) <= 4 and all(counts.values())  # at least a row each, so that none stands still
        done.update(counts)
    assert done == dict.fromkeys(proofs, 30)


def test_two_prompts_of_two_tenants_share_the_step():
    """A long prompt under way does not keep another tenant's from starting."""
    scheduler = Scheduler(BlockPool(2000), pace=StepPace(32, 32), max_running=8, prefix_sharing=False)
    first, second = sequence(400, 1, "a"), sequence(400, 1, "b")
    scheduler.add(first)
    assert {c.sequence: c.count for c in scheduler.plan().chunks} == {first: 32}
    scheduler.add(second)
    for _ in range(3):
        assert {c.sequence: c.count for c in scheduler.plan().chunks} == {first: 16, second: 16}
    scheduler.remove(second)
    assert {c.sequence: c.count for c in scheduler.plan().chunks} == {first: 32}


def test_a_long_prompt_whose_prefix_is_found_does_not_take_its_own_blocks_for_free():
    """A neighbour holds what it lacks: it waits, and is admitted once; it does not start and give way at every step."""
    scheduler = Scheduler(BlockPool(20), pace=StepPace(512, 512), max_running=4)
    before = sequence(12 * BLOCK_ROWS + 1, 1)
    neighbour = sequence(5 * BLOCK_ROWS - 20, 20)
    neighbour.owner = neighbour.client = "neighbour"
    scheduler.add(before)
    scheduler.plan()
    scheduler.remove(before)  # its 12 full blocks are idle, and can be found
    scheduler.add(neighbour)
    scheduler.plan()
    long = sequence(17 * BLOCK_ROWS, 1)
    scheduler.add(long)
    for step in range(12):
        neighbour.tokens.append(step)
        assert [chunk.sequence for chunk in scheduler.plan().chunks] == [neighbour]
    assert (scheduler.preemptions, scheduler.blocks.hits) == (0, 0)
    scheduler.remove(neighbour)
    assert [(chunk.sequence, chunk.start) for chunk in scheduler.plan().chunks] == [(long, 12 * BLOCK_ROWS)]
    assert (scheduler.preemptions, scheduler.blocks.hits) == (0, 12)


@pytest.mark.parametrize("method", ["_shares", "_newcomer"])
def test_a_failure_that_is_about_no_one_names_nobody(monkeypatch, method):
    """Not who was decided about before, in this plan or in an earlier one."""
    scheduler = Scheduler(BlockPool(100), pace=StepPace(64, 64), max_running=4)
    for number in range(3):
        scheduler.add(sequence(5, 20, f"adapter {number}"))
    for _ in range(2):
        advance(scheduler)
    assert scheduler._at is None  # nor is one kept that may be gone

    def out_of_memory(*given):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(scheduler, method, out_of_memory)
        with pytest.raises(PlanError) as told:
            scheduler.plan()
    assert told.value.sequence is None
    assert len(advance(scheduler)) == 3


def flooded(blocks=20_000, max_running=64, prompt=10, new=1000):
    """One client's 1,024 choices, as many as there is place for running."""
    scheduler = Scheduler(BlockPool(blocks), pace=StepPace(512, 512), max_running=max_running, prefix_sharing=False)
    for number in range(1024):
        choice = sequence(prompt, new, f"adapter {number % 7}")
        choice.client = "flood"
        scheduler.add(choice)
    for _ in range(20):
        advance(scheduler)
    return scheduler


def advance(scheduler):
    """A step; the sequences that got a token."""
    given = [chunk.sequence for chunk in scheduler.plan().chunks if chunk.sequence.remaining == 0]
    for one in given:
        one.tokens.append(1)
        one.max_new -= 1
        if not one.max_new:
            scheduler.remove(one)
    return given


def steps_until(scheduler, wanted, limit=3):
    for step in range(1, limit + 1):
        if wanted in advance(scheduler):
            return step
    raise AssertionError("no token came")


def test_one_clients_thousand_choices_delay_others_by_two_steps_at_most():
    """All places are the first client's, who may have them while nobody else asks; running ones are left alone."""
    scheduler = flooded()
    assert scheduler.running == 64
    for number in range(scheduler.guests):
        other = sequence(40, 30, f"adapter {number}")
        other.client = f"other {number}"
        scheduler.add(other)
        assert steps_until(scheduler, other) <= 2
    assert scheduler.preemptions == 0
    late = sequence(40, 30)
    late.client = "late"  # all guests' places are taken: it is next
    scheduler.add(late)
    while late not in (given := advance(scheduler)):
        assert given and scheduler.running <= 72
    assert all(one.client != "other 0" for one in given)  # which had its 30 tokens first


def test_nor_when_the_first_clients_sequences_fill_the_cache():
    """Then what was admitted last of it gives way, and goes on later."""
    scheduler = flooded(blocks=200, prompt=40, new=400)
    assert scheduler.blocks.available < 4
    other = sequence(100, 30)
    other.client = "other"
    scheduler.add(other)
    assert steps_until(scheduler, other) <= 2
    while other.max_new:
        assert other in advance(scheduler)  # and it keeps its blocks


@pytest.mark.parametrize("rows", [64, 512, 4096])
def test_a_newcomer_takes_no_blocks_where_those_who_run_will_not_need_all(rows):
    """However many rows a step may have: a prompt under way takes as many blocks as it lacks, and no more."""
    scheduler = Scheduler(BlockPool(120), pace=StepPace(rows, rows), max_running=16, prefix_sharing=False)
    talkers = [sequence(20, 50, "talker") for _ in range(3)]
    proof = sequence(60, 1, "proof")
    proof.steps_aside = True
    for one in (*talkers, proof):
        scheduler.add(one)
        advance(scheduler)
    assert proof.remaining > 1
    scheduler.add(sequence(20, 5, "newcomer"))
    scheduler.plan()
    assert (scheduler.running, scheduler.preemptions) == (5, 0)


def test_nor_when_prompts_of_the_first_client_are_worked_through():
    scheduler = flooded(blocks=20_000, prompt=600, new=5)
    other = sequence(200, 3)
    other.client = "other"
    scheduler.add(other)
    assert steps_until(scheduler, other) <= 2


def test_a_client_alone_may_have_all_places_and_no_more():
    assert flooded(max_running=16).running == 16


def test_one_long_sequence_each_leaves_nobody_with_nothing():
    """A newcomer takes blocks only from who runs several: two that can't both fit take turns, and both end."""
    scheduler = Scheduler(BlockPool(12), pace=StepPace(64, 64), max_running=4, prefix_sharing=False)
    both = [sequence(100, 60, name) for name in ("a", "b")]
    for one in both:
        scheduler.add(one)
    assert set(run(scheduler, {one: 60 for one in both})) == set(both)
    assert scheduler.preemptions <= 2
