"""How long ranks take to average tensors, and whether they should do so less often."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from llmtrain.train.distributed.world import World
from llmtrain.units import format_bytes, format_duration

_SMALL_BYTES, _LARGE_BYTES = 32 << 10, 1 << 20
_REPETITIONS = 2
# Of a step's time: averaging that takes less is not worth another way to train.
_WORTH_SHARE = 0.25
_SHORTEST_ROUND, _LONGEST_ROUND = 30, 100  # in steps
_FEW_SHARE = 0.05  # of the time, which averaging may take in rounds


@dataclass(frozen=True, slots=True)
class Exchange:
    """The speed of an all-reduce: a start, and bytes a second."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, size_bytes: int) -> float:
        """Return how long ranks take to average tensors of this size."""
        return self.latency_s + size_bytes / self.bytes_per_s


def measured_exchange(world: World, device: torch.device) -> Exchange:
    """Time all-reduces of two sizes, which every rank has to call. The fastest of a few counts."""
    small_s, large_s = (_fastest_s(world, device, size) for size in (_SMALL_BYTES, _LARGE_BYTES))
    per_byte_s = max(1e-12, (large_s - small_s) / (_LARGE_BYTES - _SMALL_BYTES))
    return Exchange(max(0.0, small_s - _SMALL_BYTES * per_byte_s), 1 / per_byte_s)


def _fastest_s(world: World, device: torch.device, size_bytes: int) -> float:
    tensor = torch.zeros(size_bytes // 4, device=device)
    fastest_s = math.inf
    for _ in range(_REPETITIONS):
        world.sum_values([0.0], device)  # so that all begin at about the same time
        started_s = time.monotonic()
        float(world.sum(tensor)[0])  # waits for it
        fastest_s = min(fastest_s, time.monotonic() - started_s)
    return fastest_s


def advice(exchange: Exchange, gradient_bytes: int, step_s: float) -> str | None:
    """Return what to set where averaging gradients takes much of a step; None where it does not."""
    average_s = exchange.seconds(gradient_bytes)
    if average_s < _WORTH_SHARE * step_s:
        return None
    alone_s = max(step_s - average_s, _FEW_SHARE * step_s)
    wanted = math.ceil(average_s / alone_s / _FEW_SHARE / 10) * 10
    every = min(max(_SHORTEST_ROUND, wanted), _LONGEST_ROUND)
    return (
        f"averaging gradients of {format_bytes(gradient_bytes)} takes about "
        f"{format_duration(average_s)} of a step of {format_duration(step_s)}, at "
        f"{8e-6 * exchange.bytes_per_s:,.0f} Mbit/s between the processes: a new run with "
        f"--set train.sync_every={every} averages weights once in so many steps"
    )
