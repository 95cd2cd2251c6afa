"""How long ranks take to average tensors, and whether they should do so less often."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch.distributed.distributed_c10d import PrefixStore

from llmtrain.plan.rounds import MOST_AVERAGING_SHARE, Exchange, round_steps
from llmtrain.train.distributed.world import World
from llmtrain.units import format_bytes, format_duration

_FIRST_BYTES, _GROWTH, _MOST_BYTES = 32 << 10, 32, 256 << 20
_REPETITIONS = 2
_LONGEST_S = 1.0  # that an exchange is timed for; the time of a larger one is computed
_LEAST_ALONE_SHARE = 0.05  # of a step that is not averaging


def exchange_between(
    world: World, backend: str, device: torch.device, size_bytes: int, timeout_s: float
) -> Exchange:
    """Return the speed of an all-reduce over a backend, before the ranks have opened a group.

    They open one for this alone. Every rank has to call it. Raises PeerLostError.
    """
    assert world.store is not None
    apart = replace(world, store=PrefixStore("exchange", world.store))
    with apart.process_group(backend, timeout_s):
        return measured_exchange(apart, device, size_bytes)


def measured_exchange(world: World, device: torch.device, size_bytes: int) -> Exchange:
    """Time all-reduces of growing sizes up to `size_bytes`, which every rank has to call.

    One that would take long is not begun. All ranks return the same.
    """
    small, large = _FIRST_BYTES, _GROWTH * _FIRST_BYTES
    small_s, large_s = (_fastest_s(world, device, size) for size in (small, large))
    exchange = _line(small, small_s, large, large_s)
    most = min(size_bytes, _MOST_BYTES)
    while large < most and exchange.seconds(min(most, _GROWTH * large)) < _LONGEST_S:
        small, small_s, large = large, large_s, min(most, _GROWTH * large)
        large_s = _fastest_s(world, device, large)
        exchange = _line(small, small_s, large, large_s)
    return exchange


def _line(small: int, small_s: float, large: int, large_s: float) -> Exchange:
    """Return the speed that two sizes and their times give."""
    per_byte_s = max(1e-12, (large_s - small_s) / (large - small))
    return Exchange(max(0.0, small_s - small * per_byte_s), 1 / per_byte_s)


def _fastest_s(world: World, device: torch.device, size_bytes: int) -> float:
    """Return the fastest of a few all-reduces, the mean over ranks."""
    tensor = torch.zeros(size_bytes // 4, device=device)
    fastest_s = math.inf
    for _ in range(_REPETITIONS):
        world.sum_values([0.0], device)  # so that all begin at about the same time
        started_s = time.monotonic()
        float(world.sum(tensor)[0])  # waits for it
        fastest_s = min(fastest_s, time.monotonic() - started_s)
    return world.sum_values([fastest_s], device)[0] / world.size


def advice(exchange: Exchange, gradient_bytes: int, step_s: float) -> str | None:
    """Return what to set where averaging gradients takes much of a step; None where it does not."""
    average_s = exchange.seconds(gradient_bytes)
    if average_s < MOST_AVERAGING_SHARE * step_s:
        return None
    every = round_steps(average_s, max(step_s - average_s, _LEAST_ALONE_SHARE * step_s))
    return (
        f"averaging gradients of {format_bytes(gradient_bytes)} takes about "
        f"{format_duration(average_s)} of a step of {format_duration(step_s)}, at "
        f"{8e-6 * exchange.bytes_per_s:,.0f} Mbit/s between the processes: a new run with "
        f"--set train.sync_every={every} averages weights once in so many steps"
    )
