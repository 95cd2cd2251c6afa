"""Time matrix products of this CPU in each precision that it supports, in about a second."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from llmtrain.machine.facts import MatmulTimes
from llmtrain.machine.timing import Run, Timing, compare

# The default first: fp32 matmul precision, and the dtype of weights and inputs.
_CANDIDATES = {
    "fp32": ("highest", torch.float32),
    "medium": ("medium", torch.float32),
    "bf16": ("highest", torch.bfloat16),
}
_SCREENING_SIZE = 256  # takes milliseconds, and 0.1 s if bf16 is emulated
_SCREENING_ROUNDS = 3
_HOPELESS_RATIO = 3.0  # a candidate this many times slower than fp32 is not measured further
_BUDGET_S = 0.7
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 12
_LEAST_ROWS, _MOST_ROWS = 16, 4096

_Operands = Mapping[torch.dtype, tuple[Tensor, Tensor, Tensor, Tensor]]


def time_matmuls(
    hidden_size: int, intermediate_size: int, tokens: int, threads: int
) -> MatmulTimes:
    """Return the seconds for the matrix products of two linear layers, forward and backward.

    The layers map `tokens` rows from hidden to intermediate size and back. The seconds are those
    of an idle machine: the CPU time of all threads over their number. Where `tokens` rows take
    long, fewer are timed and scaled up; a candidate that is hopeless on a small product gets its
    ratio there times fp32's seconds. Matmul precision, thread count and the global random state
    are restored.
    """
    with _settings_restored():
        screened = _screen()
        ratios = {name: timing.ratio_to(screened["fp32"]) for name, timing in screened.items()}
        hopeful = [name for name in ratios if ratios[name] < _HOPELESS_RATIO]
        round_s = sum(screened[name].cpu_s for name in hopeful)
        round_s_per_row = round_s * hidden_size * intermediate_size / _SCREENING_SIZE**3
        affordable = int(_BUDGET_S / _LEAST_ROUNDS / round_s_per_row)
        rows = min(tokens, _MOST_ROWS, max(_LEAST_ROWS, affordable))
        torch.set_num_threads(threads)
        operands = _operands(rows, hidden_size, intermediate_size)
        timed = _time(hopeful, operands, _BUDGET_S, _LEAST_ROUNDS, _MOST_ROUNDS)
    ratios |= {name: timing.ratio_to(timed["fp32"]) for name, timing in timed.items()}
    fp32_s = timed["fp32"].cpu_s / threads * tokens / rows
    return MatmulTimes(
        fp32_s=fp32_s,
        medium_s=ratios["medium"] * fp32_s,
        bf16_s=ratios["bf16"] * fp32_s,
        flops=6.0 * 2 * tokens * hidden_size * intermediate_size,
    )


def _screen() -> dict[str, Timing]:
    """Time each candidate on small layers with one thread, which never waits for another."""
    torch.set_num_threads(1)
    operands = _operands(_SCREENING_SIZE, _SCREENING_SIZE, _SCREENING_SIZE)
    return _time(_CANDIDATES, operands, 0.0, _SCREENING_ROUNDS, _SCREENING_ROUNDS)


def _time(
    names: Iterable[str], operands: _Operands, budget_s: float, least: int, most: int
) -> dict[str, Timing]:
    ways = {name: _products(name, operands) for name in names}
    return compare(ways, budget_s=budget_s, least_rounds=least, most_rounds=most)


def _products(name: str, operands: _Operands) -> list[Run]:
    """Return the six products of a candidate: y, dx and dW of y = x Wᵀ, for both layers."""
    precision, dtype = _CANDIDATES[name]
    hidden, inner, up, down = operands[dtype]
    layers = ((hidden, inner, up), (inner, hidden, down))
    pairs = [pair for x, dy, weight in layers for pair in ((x, weight.T), (dy, weight), (dy.T, x))]
    return [partial(_multiply, precision, left, right) for left, right in pairs]


def _multiply(precision: str, left: Tensor, right: Tensor) -> None:
    torch.set_float32_matmul_precision(precision)
    left @ right


def _operands(rows: int, hidden_size: int, intermediate_size: int) -> _Operands:
    """Return hidden rows, intermediate rows and the two weights, random, in each dtype."""
    shapes = (
        (rows, hidden_size),
        (rows, intermediate_size),
        (intermediate_size, hidden_size),
        (hidden_size, intermediate_size),
    )
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.empty(s).uniform_(-1, 1, generator=generator) for s in shapes)
    low = torch.bfloat16
    return {torch.float32: (a, b, c, d), low: (a.to(low), b.to(low), c.to(low), d.to(low))}


@contextmanager
def _settings_restored() -> Iterator[None]:
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
