"""Time how fast processes of this machine add up tensors over gloo, as ranks add up gradients.

They talk over the loopback. What that takes is what cores do for an exchange: copying tensors into
sockets and out of them, and adding. A network between machines comes on top of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from llmtrain.children import WorkerProgram, ask_workers, serve
from llmtrain.errors import UsageError
from llmtrain.machine.facts import ExchangeTimes
from llmtrain.machine.timing import cpu_seconds
from llmtrain.model.process_timing import ProcessGroup, largest_of_processes

_SMALL_BYTES, _LARGE_BYTES = 64, 16 << 20
_ROUNDS = 7
_LEAST_S = 1e-12  # of a byte; a cache holds no zeros
_PROGRAM = WorkerProgram(
    "llmtrain.model.exchange_timing:main",
    (),
    task="timed an exchange between processes",
    hint="GLOO_SOCKET_IFNAME, if set, has to name an interface of this machine",
)


@dataclass(frozen=True, slots=True)
class ExchangeTask:
    """One of several processes that add up tensors, and how they find each other."""

    rank: int
    processes: int
    meeting: str  # the file through which they find each other


def time_exchange(processes: int) -> ExchangeTimes:
    """Return how fast so many processes, started for it, add up tensors.

    Raises LlmtrainError where one of them fails.
    """
    with tempfile.TemporaryDirectory(prefix="llmtrain-exchange-") as directory:
        meeting, adapter = str(Path(directory) / "meeting"), TypeAdapter(ExchangeTask)
        requests = (
            [adapter.dump_json(ExchangeTask(rank, processes, meeting))] for rank in range(processes)
        )
        with closing(ask_workers(_PROGRAM, requests, lambda: None, processes=processes)) as answers:
            found = [TypeAdapter(ExchangeTimes).validate_json(answer[0]) for answer in answers]
    return found[0]  # those of the slowest, on which all agree


def main() -> None:
    """Run one of the processes."""
    serve(_answer)


def _answer(request: Iterator[bytes]) -> list[bytes]:
    [content] = request
    task = TypeAdapter(ExchangeTask).validate_json(content)
    try:
        with closing(ProcessGroup(task.meeting, task.rank, task.processes)):
            times = _timed()
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["a RuntimeError"])[0]
        raise UsageError(f"processes cannot exchange tensors here: {reason}") from error
    return [TypeAdapter(ExchangeTimes).dump_json(times)]


def _timed() -> ExchangeTimes:
    torch.set_num_threads(1)
    small_s, small_cpu_s = _seconds(_SMALL_BYTES)
    large_s, large_cpu_s = _seconds(_LARGE_BYTES)
    size = _LARGE_BYTES - _SMALL_BYTES
    return ExchangeTimes(
        latency_s=small_s,
        byte_s=max(_LEAST_S, (large_s - small_s) / size),
        cpu_byte_s=max(_LEAST_S, (large_cpu_s - small_cpu_s) / size),
    )


def _seconds(size_bytes: int) -> tuple[float, float]:
    """Return the seconds of an all-reduce and the CPU seconds of a process, of the fastest round.

    Both are those of the process with the most.
    """
    tensor, rounds = torch.zeros(size_bytes // 4), []
    for _ in range(_ROUNDS):
        largest_of_processes(0.0)  # so that all begin together
        started_s, started_cpu_s = perf_counter(), cpu_seconds()
        dist.all_reduce(tensor)
        cpu_s, wall_s = cpu_seconds() - started_cpu_s, perf_counter() - started_s
        rounds.append((largest_of_processes(wall_s), largest_of_processes(cpu_s)))
    return min(wall_s for wall_s, _ in rounds), min(cpu_s for _, cpu_s in rounds)
