"""Cache blocks: prefixes are shared within one owner and one past only, and every block is accounted for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.server.adapters.readiness import VirtualRows
from graft.server.cache.blocks import BlockPool, Found, chain_hashes, root_hash
from graft.server.cache.step import BLOCK_ROWS
from graft.server.engine.sequence import SequenceState

OWNERS = (None, "a" * 64, "b" * 64)


def hashes(owner, tokens):
    return [*chain_hashes(root_hash(owner), tokens, range(BLOCK_ROWS, len(tokens) + 1, BLOCK_ROWS))]


@pytest.mark.parametrize("virtual", [0, 1, 15, 16, 20])
def test_a_sequences_hashes_are_the_same_asked_for_at_once_or_as_it_grows(virtual):
    """Each is of all tokens up to a block's end, before which an adapter's rows lie."""
    tokens = list(range(70))
    whole, growing = (SequenceState("a", tokens, 5, 69, VirtualRows(virtual, virtual, ())) for _ in range(2))
    ends = [end for end in range(1, 71) if not (virtual + end) % BLOCK_ROWS]
    assert whole.hashes(70) == [*chain_hashes(root_hash("a"), tokens, ends)]
    assert all(growing.hashes(n) == whole.hashes(70)[: sum(end <= n for end in ends)] for n in range(71))
    changed = SequenceState("a", [*tokens[:40], 0, *tokens[41:]], 5, 69, VirtualRows(virtual, virtual, ()))
    same = [one == other for one, other in zip(changed.hashes(70), whole.hashes(70), strict=True)]
    assert same == [end <= 40 for end in ends]


# few different tokens and owners, so that equal prefixes are common
texts = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(
    lambda bits: [b for b in bits for _ in range(BLOCK_ROWS)]
)
steps = st.lists(st.tuples(st.sampled_from(OWNERS), texts, st.integers(0, 3)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_a_found_block_holds_what_its_owner_computed_after_the_same_tokens(script):
    """A model beside it: what each block was filled with, by whom. Blocks found must hold exactly that."""
    blocks, content, held = BlockPool(9), {}, []
    for owner, tokens, release in script:
        for _ in range(min(release, len(held))):
            blocks.release(held.pop(0))
        keys = hashes(owner, tokens)
        found = blocks.find(keys)
        for i, block in enumerate(found):
            assert content[block] == (owner, tokens[: (i + 1) * BLOCK_ROWS])
        try:
            fresh = blocks.take(len(keys) - len(found))
        except MemoryError:
            blocks.release(found)
            continue
        for i, block in enumerate(fresh, start=len(found)):
            content[block] = (owner, tokens[: (i + 1) * BLOCK_ROWS])
            blocks.publish(block, keys[i])
        held.append([*found, *fresh])
        in_use = {block for table in held for block in table}
        assert 0 not in in_use and blocks.used == len(in_use)
    for table in held:
        blocks.release(table)
    assert blocks.used == 0 and blocks.available == 8
    assert len(blocks.take(8)) == 8


def test_a_prefix_outlives_what_follows_it():
    blocks = BlockPool(4)
    keys = hashes(None, [1] * 3 * BLOCK_ROWS)
    table = blocks.take(3)
    for block, key in zip(table, keys, strict=True):
        blocks.publish(block, key)
    blocks.release(table)
    blocks.take(1)
    assert blocks.peek(keys) == Found(2, idle=2)


def test_withdrawn_blocks_are_not_found():
    blocks = BlockPool(4)
    keys = hashes(None, [1] * BLOCK_ROWS)
    table = blocks.take(1)
    blocks.publish(table[0], keys[0])
    blocks.withdraw(table)
    assert blocks.find(keys) == []
    blocks.release(table)
    assert blocks.available == 3


def test_misuse_is_told():
    blocks = BlockPool(3)
    with pytest.raises(MemoryError):
        blocks.take(3)
    table = blocks.take(1)
    blocks.release(table)
    with pytest.raises(ValueError, match="more often"):
        blocks.release(table)


def test_blocks_that_others_use_are_not_counted_as_idle():
    blocks = BlockPool(6)
    keys = hashes(None, [1] * 3 * BLOCK_ROWS)
    table = blocks.take(3)
    for block, key in zip(table, keys, strict=True):
        blocks.publish(block, key)
    assert blocks.peek(keys) == Found(3, idle=0)
    blocks.release(table[1:])
    assert blocks.peek(keys) == Found(3, idle=2)
