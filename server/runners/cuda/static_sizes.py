"""The sizes of static steps, and what lies at fixed addresses for them. Needs no Triton: it is asked before there is a runner."""

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # rows that a step is padded to
_NUMBER = 8  # bytes, of int64 and float64
_LAUNCH_PLANS = 2  # steps are kept without adapters, and as the present residents want them
_WAYS = 3  # of drawing (sampling/torch_sampler.py)


def padded(rows: int) -> int:
    """The size that a step of so many rows has."""
    return next(size for size in SIZES if size >= rows)


def input_numbers(rows: int, blocks: int) -> int:
    """Of a step's inputs (decode_step.py): eight for each row, a padding row's one block, and `blocks` a row."""
    return 8 * rows + 1 + rows * blocks


def rule_numbers(rows: int) -> int:
    """Of what its draws are asked (draw_step.py): six for each row."""
    return 6 * rows


def static_bytes(rows: int, blocks: int, vocabulary: int, itemsize: int) -> int:
    """Inputs, draws and logits of steps of every size up to that of `rows` rows. `blocks`: the most that a row's table has;
    `itemsize`: bytes of a logit."""
    sizes = [size for size in SIZES if size <= padded(min(rows, SIZES[-1]))]
    numbers = sum(_LAUNCH_PLANS * input_numbers(size, blocks) + _WAYS * rule_numbers(size) for size in sizes)
    return numbers * _NUMBER + sum(sizes) * vocabulary * itemsize
