"""How fast this CPU multiplies in each precision it offers, in about a second."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from llmtrain.device.facts import MatmulTimes

# What is timed: fp32 matmul precision, and the type of weights and inputs.
_CANDIDATES = {
    "fp32": ("highest", torch.float32),
    "medium": ("medium", torch.float32),
    "bf16": ("highest", torch.bfloat16),
}
_LOOK_SIZE = 256  # a product of this size takes 0.1 s where bf16 is emulated
_HOPELESS_RATIO = 3.0  # a candidate this many times slower than fp32 is looked at no further
_ROUNDS = 3
_BUDGET_S = 0.6  # for the last rows timed; those before cost at most as much again
_FIRST_ROWS, _MOST_ROWS = 64, 4096

_Operands = Mapping[torch.dtype, tuple[Tensor, Tensor, Tensor, Tensor]]


def time_matmuls(
    hidden_size: int, intermediate_size: int, tokens: int, threads: int
) -> MatmulTimes:
    """Seconds for the matrix products of two linear layers, forward and backward.

    The layers map `tokens` rows from hidden to intermediate size and back. The best of a few
    interleaved rounds counts: other programs can only slow one down. Where `tokens` rows take
    long, fewer are timed and scaled up, and a candidate that is hopeless on a small product gets
    its ratio there times fp32's seconds. Matmul precision, thread count and the global random
    state are afterwards as they were.
    """
    most = min(tokens, _MOST_ROWS)
    operands = _operands(most, hidden_size, intermediate_size)
    rows = min(most, _FIRST_ROWS)
    with _settings_restored():
        ratios = _ratios_at_a_look()
        hopeful = [name for name, ratio in ratios.items() if ratio < _HOPELESS_RATIO]
        torch.set_num_threads(threads)
        best_s = _best_s(hopeful, operands, rows)
        while rows < most and 2 * _ROUNDS * sum(best_s.values()) < _BUDGET_S:
            rows = min(most, 2 * rows)
            best_s = _best_s(hopeful, operands, rows)
    all_s = {name: ratio * best_s["fp32"] for name, ratio in ratios.items()} | best_s
    scaled = {name: seconds * tokens / rows for name, seconds in all_s.items()}
    return MatmulTimes(fp32_s=scaled["fp32"], medium_s=scaled["medium"], bf16_s=scaled["bf16"])


def _ratios_at_a_look() -> dict[str, float]:
    """How many times slower than fp32 each candidate is, on a small product and one thread.

    One thread never waits for another that a busy machine holds up, which would swamp so short
    a measurement.
    """
    torch.set_num_threads(1)
    operands = _operands(_LOOK_SIZE, _LOOK_SIZE, _LOOK_SIZE)
    best_s = _best_s(_CANDIDATES, operands, _LOOK_SIZE)
    return {name: seconds / best_s["fp32"] for name, seconds in best_s.items()}


def _best_s(names: Iterable[str], operands: _Operands, rows: int) -> dict[str, float]:
    """The best time of each candidate. Interleaved, so that a slow moment hits them all."""
    rounds = [{name: _round_s(name, operands, rows) for name in names} for _ in range(_ROUNDS)]
    return {name: min(times[name] for times in rounds) for name in rounds[0]}


def _round_s(name: str, operands: _Operands, rows: int) -> float:
    precision, dtype = _CANDIDATES[name]
    torch.set_float32_matmul_precision(precision)
    hidden, inner, up, down = operands[dtype]
    start_s = time.perf_counter()
    _products(hidden[:rows], inner[:rows], up)
    _products(inner[:rows], hidden[:rows], down)
    return time.perf_counter() - start_s


def _products(x: Tensor, dy: Tensor, weight: Tensor) -> None:
    """y, dx and dW of y = x Wᵀ."""
    x @ weight.T
    dy @ weight
    dy.T @ x


def _operands(rows: int, hidden_size: int, intermediate_size: int) -> _Operands:
    """Hidden rows, intermediate rows and the two weights, in each type. Never zeros."""
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
