"""Measure a CPU in a process of its own, before a run that trains for a while.

What is timed is allocated, and what is compiled imports a compiler. Some of it stays in the
process, beside what the prediction of a run counts (docs/measurements/memory.md). The measurements
come back through their cache.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pydantic import TypeAdapter

from llmtrain.children import python_command, start_process
from llmtrain.engine.workload import workload_of
from llmtrain.errors import LlmtrainError
from llmtrain.machine.facts import Facts
from llmtrain.pipes import unread_pipe_named
from llmtrain.plan.auto_profile import choose_profile
from llmtrain.plan.cpu_benchmarks import measured_cpu
from llmtrain.plan.decisions import choose_device
from llmtrain.plan.kernel_probes import Announce
from llmtrain.profile.schema import DeviceSection, Profile
from llmtrain.train.distributed.world import World

_PROGRAM = "llmtrain.engine.measuring_process:main"

# To start a process takes two seconds of a core, and measuring more. A core makes some 1e11 FLOP/s,
# one with matrix instructions 1e12: this many take from seconds to half a minute.
_WORTH_FLOPS = 2e12
_WORTH_TIME_S = 30
# Of the machine: two processes are beside each other while the second measures.
_LEAST_ROOM_BYTES = 2 << 30
_LARGEST_CHOICE = 120_000_000  # weights of the largest profile that may be chosen
_STATE_BYTES = 16  # of a trained weight, with its gradient and the optimizer's state


@dataclass(frozen=True, slots=True)
class ProfileTask:
    """To choose a profile for a time."""

    facts: Facts
    options: DeviceSection
    time_s: float | None

    @property
    def is_worth_it(self) -> bool:
        """True where a process of its own costs little beside the run, and there is memory."""
        lasts = self.time_s is not None and self.time_s >= _WORTH_TIME_S
        return lasts and _has_room(self.facts, _LARGEST_CHOICE)

    def measure(self, announce: Announce) -> None:
        """Measure what the choice depends on. Raises UsageError."""
        choose_profile(self.facts, self.options, self.time_s, announce=announce)


@dataclass(frozen=True, slots=True)
class PlanTask:
    """To plan a run, by so many ranks if it was launched."""

    facts: Facts
    profile: Profile
    ranks: int = 1
    local_ranks: int = 1

    @property
    def is_worth_it(self) -> bool:
        """True where a process of its own costs little beside the run, and there is memory."""
        if choose_device(self.facts, self.profile.device).value != "cpu":
            return False
        workload = workload_of(self.profile, None, self.facts, measure=False)
        if not _has_room(self.facts, workload.shape.parameters):
            return False
        if workload.time_s is not None:
            return workload.time_s >= _WORTH_TIME_S
        return (workload.tokens or 0) * workload.flops_per_token >= _WORTH_FLOPS

    def measure(self, announce: Announce) -> None:
        """Measure what the plan depends on. Raises UsageError and DoesNotFitError."""
        world = World(size=self.ranks, local_size=self.local_ranks)
        workload = workload_of(self.profile, world, self.facts, announce=announce)
        measured_cpu(self.facts, self.profile.device, workload, announce)


Task = ProfileTask | PlanTask


def plan_task(facts: Facts, profile: Profile, world: World | None) -> PlanTask:
    """Return the task for the ranks of `world`, if the run was launched."""
    ranks = world or World()
    return PlanTask(facts, profile, ranks.size, ranks.local_size)


def _has_room(facts: Facts, parameters: int) -> bool:
    room = _LEAST_ROOM_BYTES + 2 * _STATE_BYTES * parameters
    return facts.cpu.usable_memory_bytes >= room


def measure_apart(task: Task, announce: Announce) -> bool:
    """Make the measurements that a task lacks in another process; return whether it lacked any.

    Nothing depends on that: what it cannot measure or save, this process measures, or it meets the
    same error.
    """
    if not task.is_worth_it or not _lacks_measurements(task):
        return False
    with _child(task) as lines:
        for line in lines:
            announce(line.decode(errors="replace").rstrip("\n"))
    return True


class _LackingError(Exception):
    """A measurement would have to be made."""


def _lacks_measurements(task: Task) -> bool:
    """Return whether the task would measure, which is announced before."""

    def refuse(_: str) -> None:
        raise _LackingError

    try:
        task.measure(refuse)
    except _LackingError:
        return True
    except LlmtrainError:
        return False  # this process meets it as well
    return False


@contextmanager
def _child(task: Task) -> Iterator[Iterator[bytes]]:
    """Start the process that measures, and yield the lines that it writes."""
    process = start_process(python_command(_PROGRAM))
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        content = TypeAdapter(Task).dump_json(task)
        with suppress(BrokenPipeError), unread_pipe_named():
            process.stdin.write(content)
            process.stdin.close()
        yield iter(process.stdout)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # of what could not be written
            pipe.close()


def measure(content: bytes) -> None:
    """Make the measurements that a task lacks; each announcement is a line of standard output."""
    task = TypeAdapter(Task).validate_json(content)
    with os.fdopen(1, "wb", buffering=0) as lines:

        def announce(text: str) -> None:
            lines.write(f"{text}\n".encode())

        with suppress(LlmtrainError):  # the process that plans meets it as well
            task.measure(announce)
