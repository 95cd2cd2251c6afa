"""`llmtrain memory` without a profile: memory in use now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import FAIL_OVER, Threshold, bytes_at_most, require_met
from llmtrain.documents.base import present
from llmtrain.documents.memory import (
    AcceleratorMemory,
    GroupMemory,
    Memory,
    ProcessMemory,
    SystemMemory,
    WatchedRun,
)
from llmtrain.errors import UsageError
from llmtrain.units import format_bytes

if TYPE_CHECKING:
    from llmtrain.train.run_directory.directory import RunDirectory


@dataclass(frozen=True)
class Target:
    """A process and all its descendants, and the run that they train, if known."""

    pid: int | None = None  # None: this process
    run: RunDirectory | None = None


def show_memory_now(
    output: Output, run: str | None, pid: int | None, limit_bytes: int | None
) -> None:
    """Print memory in use, of this process or of the one that is named."""
    target = find_target(run, pid)
    try:
        memory = memory_now(target)
    except ProcessLookupError:
        raise no_such_process(target) from None
    thresholds = _in_use(memory, limit_bytes)
    document = Memory.of(memory, **present(thresholds=thresholds))
    output.answer(document, memory_lines(memory))
    require_met(thresholds, hint="llmtrain memory --watch shows how it changes")


def find_target(run: str | None, pid: int | None) -> Target | None:
    """Return the process of a run or a pid; None if neither is named. Raises UsageError."""
    if run is None:
        return None if pid is None else Target(pid)
    from llmtrain.train.run_directory.running import (
        run_in_training,  # imports torch, which takes memory
    )

    directory, training_pid = run_in_training(run)
    return Target(training_pid, directory)


def no_such_process(target: Target | None) -> UsageError:
    """Return the error for a process that is not running."""
    pid = target.pid if target is not None else None
    return UsageError(f"--pid {pid}: no such process is running", hint="llmtrain runs list")


def _in_use(memory: Memory, limit_bytes: int | None) -> list[Threshold]:
    """Return --fail-over as a threshold: on the named process, the control group or the system."""
    used_bytes, name = memory.system.used_bytes, "memory in use on this machine"
    if "pid" in memory.process.model_fields_set:
        used_bytes = memory.process.used_bytes
        name = f"memory in use by process {memory.process.pid}"
    elif memory.cgroup is not None:
        used_bytes, name = memory.cgroup.used_bytes, "memory in use in this control group"
    return bytes_at_most(FAIL_OVER, limit_bytes, used_bytes, is_named=name)


def memory_now(target: Target | None = None, **more: object) -> Memory:
    """Return memory in use by the system, control group, processes and accelerators.

    Processes and accelerators are those of this process unless there is a `target`. Raises
    ProcessLookupError if the target has ended.
    """
    run = target.run if target is not None else None
    logged = {"path": run.path, "logged": run.last_step_line()} if run is not None else None
    return Memory.of(**read_memory(target), **present(run=logged), **more)


def read_memory(target: Target | None = None) -> dict[str, object]:
    """Return the values that `Memory` and `MemoryProfile` have in common."""
    from llmtrain.machine import gpu_memory, memory_usage

    pid = None if target is None else target.pid
    system, process = memory_usage.read_system_memory(), memory_usage.read_process_memory(pid)
    gpus = (
        gpu_memory.read_accelerator_memory()
        if target is None
        else gpu_memory.read_accelerators_from_outside()
    )
    used_bytes = process.resident_bytes
    return {
        "system": system,
        "cgroup": memory_usage.read_group_use(pid),
        "process": ProcessMemory.of(
            process,
            **present(pid=pid),
            total_bytes=system.total_bytes,
            available_bytes=system.available_bytes,
            used_bytes=used_bytes,
            percent=round(100 * used_bytes / system.total_bytes, 1),
        ),
        "accelerators": gpus,
    }


def memory_lines(memory: Memory) -> list[str]:
    """Return the document as lines: one for each thing that has memory."""
    lines = [f"system   {_use(memory.system)}"]
    if memory.cgroup is not None:
        lines.append(f"cgroup   {_use(memory.cgroup)}")
    lines.append(f"process  {_process(memory.process)}")
    for gpu in memory.accelerators:
        sizes = _sizes(gpu.allocated_bytes, gpu.reserved_bytes, gpu.peak_reserved_bytes)
        lines.append(f"{gpu.kind}:{gpu.index}   {gpu.name}: {_use(gpu)}{sizes}")
    if memory.run is not None:
        lines.append(f"run      {_run(memory.run)}")
    return lines


def _use(memory: SystemMemory | GroupMemory | AcceleratorMemory) -> str:
    """Return `5.1 GiB of 15.6 GiB used (33%), 10.5 GiB available`."""
    total = format_bytes(memory.total_bytes)
    if memory.available_bytes is None or memory.used_bytes is None:
        return f"of {total}"
    used, available = format_bytes(memory.used_bytes), format_bytes(memory.available_bytes)
    return f"{used} of {total} used ({memory.percent:g}%), {available} available"


def _process(memory: ProcessMemory) -> str:
    of = f"{memory.pid}: " if memory.pid is not None else ""
    others = f" in {memory.processes} processes" if memory.processes > 1 else ""
    used, peak = format_bytes(memory.used_bytes), format_bytes(memory.peak_resident_bytes)
    return f"{of}{used}{others} ({memory.percent:g}%), peak {peak} ({memory.source})"


def _sizes(allocated: int | None, reserved: int | None, peak: int | None) -> str:
    named = {"allocated": allocated, "reserved": reserved, "peak": peak}
    known = {name: size for name, size in named.items() if size is not None}
    return "".join(f", {name} {format_bytes(size)}" for name, size in known.items())


def _run(run: WatchedRun) -> str:
    """Return the run and its last step; only its log says what its allocator uses on a GPU."""
    if (line := run.logged) is None:
        return f"{run.path}, step 0"
    sizes = line.accelerator_allocated_bytes, line.accelerator_bytes, line.accelerator_peak_bytes
    return f"{run.path}, step {line.step}{_sizes(*sizes)}"
