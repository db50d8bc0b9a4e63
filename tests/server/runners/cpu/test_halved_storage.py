"""A float32 adapter whose every number is one of bfloat16's is held in half the memory, and its results are the same to the bit."""

import pytest
import torch
import torch.nn.functional as F

from tests.server.runners.cpu.conftest import close, rand

WIDTH, TAPS = 50, 3
MORE = 1 + 2**-12  # a float32 that bfloat16 has not


def numbers(*shape, seed):
    """Float32 of bfloat16's."""
    return rand("bfloat16", *shape, seed=seed).float()


def matrices(rank, out, turned):
    A, B = numbers(rank, WIDTH, seed=1), numbers(rank, out, seed=2)
    return A, B.T.contiguous().T if turned else B


def made(kernels, *low_ranks):
    """An adapter of (tap, A, B)."""
    parts = [
        kernels.LowRank(tap=tap, reads=[0], A=A, B=B, a=None, b=None, activation="none") for tap, A, B in low_ranks
    ]
    return kernels.Adapter_float32(taps=TAPS, vectors=[], low_ranks=parts)


def result(kernels, adapter, x, target):
    target = target.clone()
    kernels.detour_float32([adapter], [x, torch.zeros(len(x), 1), target], 2, [0, len(x)])
    return target


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("rank", [1, 5, 16, 21, 40])
@pytest.mark.parametrize("out", [37, 64, 150])
@pytest.mark.parametrize("rows", [1, 3, 6, 21])
def test_half_the_memory_and_the_same_bits(kernels, rows, out, rank, turned):
    A, B = matrices(rank, out, turned)
    x, target = rand("float32", rows, WIDTH, seed=3), rand("float32", rows, out, seed=4)
    beside = (
        1,
        torch.full((1, WIDTH), MORE),
        torch.full((1, 1), MORE),
    )  # at another tap: nothing of that adapter is halved
    halved, whole = made(kernels, (2, A, B)), made(kernels, (2, A, B), beside)
    assert 2 * halved.bytes == whole.bytes - made(kernels, beside).bytes
    got = result(kernels, halved, x, target)
    assert torch.equal(got, result(kernels, whole, x, target))
    close(got, target + F.linear(x, A) @ B, "float32")


@pytest.mark.parametrize("place", [(0, 0), (4, 7), (-1, -1)])
@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
def test_one_number_more_and_its_matrices_are_whole(kernels, which, place, turned):
    """A's and B's each for themselves: a scale is in B alone."""
    A, B = matrices(16, 64, turned)
    matrix = A if which == "A" else B
    matrix[place] = MORE
    all_halved, this = made(kernels, (2, *matrices(16, 64, turned))), made(kernels, (2, A, B))
    of_B = 16 * 64 * 2
    assert this.bytes - all_halved.bytes == (of_B if which == "B" else all_halved.bytes - of_B)
    x, target = rand("float32", 3, WIDTH, seed=3), rand("float32", 3, 64, seed=4)
    close(result(kernels, this, x, target), target + F.linear(x, A) @ B, "float32")
    changed, unchanged = result(kernels, this, x, target), result(kernels, all_halved, x, target)
    assert not torch.equal(changed, unchanged)


def test_of_bfloat16_nothing_changes(kernels):
    A, B = rand("bfloat16", 16, 64, seed=1), rand("bfloat16", 16, 64, seed=2)
    form = kernels.LowRank(tap=0, reads=[0], A=A, B=B, a=None, b=None, activation="none")
    assert kernels.Adapter_bfloat16(taps=1, vectors=[], low_ranks=[form]).bytes == 2 * 16 * 64 * 2
