"""How fast this CPU multiplies in each precision it offers, in about a second."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from llmtrain.machine.facts import MatmulTimes

# What is timed: fp32 matmul precision, and the type of weights and inputs.
_CANDIDATES = {
    "fp32": ("highest", torch.float32),
    "medium": ("medium", torch.float32),
    "bf16": ("highest", torch.bfloat16),
}
_LOOK_SIZE = 256  # a look takes milliseconds, and 0.1 s where bf16 is emulated
_LOOK_ROUNDS = 3
_HOPELESS_RATIO = 3.0  # a candidate this many times slower than fp32 is looked at no further
_BUDGET_S = 0.7
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 12
_LEAST_ROWS, _MOST_ROWS = 16, 4096

_Operands = Mapping[torch.dtype, tuple[Tensor, Tensor, Tensor, Tensor]]


def time_matmuls(
    hidden_size: int, intermediate_size: int, tokens: int, threads: int
) -> MatmulTimes:
    """Seconds for the matrix products of two linear layers, forward and backward.

    The layers map `tokens` rows from hidden to intermediate size and back. Each product counts
    with its best time of several interleaved rounds: other programs can only slow it down. Where
    `tokens` rows take long, fewer are timed and scaled up, and a candidate that is hopeless on a
    small product gets its ratio there times fp32's seconds. Matmul precision, thread count and
    the global random state are afterwards as they were.
    """
    with _settings_restored():
        look_s = _look_s()
        ratios = {name: seconds / look_s["fp32"] for name, seconds in look_s.items()}
        hopeful = [name for name in ratios if ratios[name] < _HOPELESS_RATIO]
        look_round_s = sum(look_s[name] for name in hopeful)
        round_s_per_row = look_round_s * hidden_size * intermediate_size / _LOOK_SIZE**3
        affordable = int(_BUDGET_S / _LEAST_ROUNDS / round_s_per_row)
        rows = min(tokens, _MOST_ROWS, max(_LEAST_ROWS, affordable))
        torch.set_num_threads(threads)
        operands = _operands(rows, hidden_size, intermediate_size)
        best_s = _best_s(hopeful, operands, _LEAST_ROUNDS, _MOST_ROUNDS)
    all_s = {name: ratio * best_s["fp32"] for name, ratio in ratios.items()} | best_s
    scaled = {name: seconds * tokens / rows for name, seconds in all_s.items()}
    return MatmulTimes(
        fp32_s=scaled["fp32"],
        medium_s=scaled["medium"],
        bf16_s=scaled["bf16"],
        flops=6.0 * 2 * tokens * hidden_size * intermediate_size,
    )


def _look_s() -> dict[str, float]:
    """Seconds of each candidate on small layers and one thread.

    One thread never waits for another that a busy machine holds up, which would swamp so short
    a measurement.
    """
    torch.set_num_threads(1)
    operands = _operands(_LOOK_SIZE, _LOOK_SIZE, _LOOK_SIZE)
    return _best_s(_CANDIDATES, operands, _LOOK_ROUNDS, _LOOK_ROUNDS)


def _best_s(
    names: Iterable[str], operands: _Operands, least_rounds: int, most_rounds: int
) -> dict[str, float]:
    """Each candidate's seconds. Interleaved, so that a slow moment hits them all."""
    deadline_s = time.perf_counter() + _BUDGET_S
    best = {name: _round_s(name, operands) for name in names}
    for done in range(1, most_rounds):
        if done >= least_rounds and time.perf_counter() > deadline_s:
            break
        for name, fastest in best.items():
            best[name] = [min(pair) for pair in zip(fastest, _round_s(name, operands), strict=True)]
    return {name: sum(seconds) for name, seconds in best.items()}


def _round_s(name: str, operands: _Operands) -> list[float]:
    """Seconds of each of the six products, once."""
    precision, dtype = _CANDIDATES[name]
    torch.set_float32_matmul_precision(precision)
    hidden, inner, up, down = operands[dtype]
    return [*_products_s(hidden, inner, up), *_products_s(inner, hidden, down)]


def _products_s(x: Tensor, dy: Tensor, weight: Tensor) -> Iterator[float]:
    """Seconds for y, dx and dW of y = x Wᵀ."""
    for left, right in ((x, weight.T), (dy, weight), (dy.T, x)):
        start_s = time.perf_counter()
        left @ right
        yield time.perf_counter() - start_s


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
