"""How much memory is in use now: the machine's, this process tree's, the accelerators'.

Asked of psutil, and of the standard library where psutil is missing or refuses.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from llmtrain.machine.cgroup import read_limited_groups, read_limits, read_memory_usage
from llmtrain.machine.memory_pressure import Bound
from llmtrain.machine.memory_readers import PsutilReader, standard_reader
from llmtrain.machine.memory_readings import (
    AcceleratorMemory,
    Available,
    GroupUse,
    MemoryReader,
    ProcessMemory,
    SystemMemory,
)
from llmtrain.machine.nvidia import read_nvidia_gpus

__all__ = [
    "AcceleratorMemory",
    "GroupUse",
    "ProcessMemory",
    "SystemMemory",
    "peak_resident_bytes",
    "read_accelerator_memory",
    "read_accelerators_from_outside",
    "read_bounds",
    "read_group_use",
    "read_process_memory",
    "read_system_memory",
    "readers",
    "resident_bytes",
]

T = TypeVar("T")


def read_system_memory(root: Path = Path("/")) -> SystemMemory:
    """The machine's memory now, and the control group's limit found under `root`."""
    source, now = _ask(lambda reader: (reader.source, reader.available()))
    used_bytes = now.total_bytes - now.available_bytes
    limit_bytes = read_limits(root).memory_limit_bytes
    limited = limit_bytes is not None and limit_bytes < now.total_bytes
    return SystemMemory(
        total_bytes=now.total_bytes,
        available_bytes=now.available_bytes,
        used_bytes=used_bytes,
        percent=round(100 * used_bytes / now.total_bytes, 1),
        limit_bytes=limit_bytes if limited else None,
        limit_used_bytes=read_memory_usage(root) if limited else None,
        source=source,
    )


def read_bounds(root: Path = Path("/")) -> list[Bound]:
    """What bounds this process's memory from outside, with what is taken now. Raises OSError.

    A few small files: fit for every step.
    """
    now = _machine_now()
    taken, swap_bytes = now.total_bytes - now.available_bytes, now.swap_free_bytes
    bounds = [Bound("the machine", now.total_bytes, taken, swap_bytes)]
    for number, group in enumerate(read_limited_groups(root)):
        if group.limit_bytes < now.total_bytes:
            room = swap_bytes if group.swap_bytes is None else min(swap_bytes, group.swap_bytes)
            name = "the control group" if number == 0 else f"control group {group.path}"
            bounds.append(Bound(name, group.limit_bytes, group.used_bytes, room))
    return bounds


def _machine_now() -> Available:
    """The machine's memory, and what of it can be moved to swap, without starting a program."""
    if sys.platform == "darwin":  # its swap grows on the disk
        now, room = _ask(lambda reader: reader.available()), shutil.disk_usage("/").free
        return Available(now.total_bytes, now.available_bytes, room)
    return standard_reader().available()


def read_group_use(pid: int | None = None, root: Path = Path("/")) -> GroupUse | None:
    """The limited control group of a process that has the least left; None where none limits.

    A limit above the machine's own memory is none.
    """
    total_bytes = _machine_now().total_bytes
    groups = [g for g in read_limited_groups(root, pid) if g.limit_bytes < total_bytes]
    tightest = min(groups, key=lambda g: g.limit_bytes - g.used_bytes, default=None)
    if tightest is None:
        return None
    used_bytes, limit_bytes = tightest.used_bytes, tightest.limit_bytes
    return GroupUse(
        path=str(tightest.path),
        total_bytes=limit_bytes,
        available_bytes=max(0, limit_bytes - used_bytes),
        used_bytes=used_bytes,
        percent=round(100 * used_bytes / limit_bytes, 1),
    )


def read_process_memory(pid: int | None = None) -> ProcessMemory:
    """The memory of this process, or that of `pid`, and its descendants.

    Looks at every process: milliseconds. Raises ProcessLookupError where it has ended.
    """
    return _ask(lambda reader: reader.process_tree(pid))


def resident_bytes(pid: int | None = None) -> int:
    """What one process alone holds now. Microseconds: fit for every step."""
    return _ask(lambda reader: reader.resident_bytes(pid))


def peak_resident_bytes() -> int:
    """The most that this process alone held since it started. Fit for every step."""
    return standard_reader().peak_resident_bytes()


def read_accelerator_memory(cuda_index: int | None = None) -> tuple[AcceleratorMemory, ...]:
    """The memory of every GPU that torch can use, or only of one CUDA device.

    Asking a CUDA device how much is free opens a context on it, some hundred MB: a rank should
    name its own.
    """
    import torch

    if torch.cuda.is_available():
        indices = range(torch.cuda.device_count()) if cuda_index is None else (cuda_index,)
        return tuple(_cuda_memory(index) for index in indices)
    return (_mps_memory(),) if torch.backends.mps.is_available() else ()


def readers() -> Iterator[MemoryReader]:
    """Those that can be asked here, the best first."""
    with suppress(OSError):
        yield PsutilReader()
    yield standard_reader()


def read_accelerators_from_outside() -> tuple[AcceleratorMemory, ...]:
    """Every GPU's memory without what a process's allocator holds, which only that one knows.

    Asked of the driver's tool where it is there, which takes none of that memory itself.
    """
    found = read_nvidia_gpus()
    if found is not None or not _may_have_a_gpu():
        return found or ()
    return tuple(_from_outside(reading) for reading in read_accelerator_memory())


def _may_have_a_gpu() -> bool:
    """False where importing torch, which takes hundreds of MB, would find none."""
    drivers = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # NVIDIA's and AMD's
    return sys.platform != "linux" or any(driver.exists() for driver in drivers)


def _from_outside(reading: AcceleratorMemory) -> AcceleratorMemory:
    available_bytes = reading.available_bytes if reading.kind == "cuda" else None
    return AcceleratorMemory(
        reading.kind, reading.index, reading.name, reading.total_bytes, available_bytes
    )


def _ask(question: Callable[[MemoryReader], T]) -> T:
    """The first answer. Raises OSError, the last reader's."""
    refusal = OSError("no way to read memory")
    for reader in readers():
        try:
            return question(reader)
        except OSError as error:
            refusal = error
    raise refusal


def _cuda_memory(index: int) -> AcceleratorMemory:
    import torch

    properties = torch.cuda.get_device_properties(index)
    available_bytes: int | None = None
    with suppress(RuntimeError):  # too full to open a context, or taken by another process
        available_bytes = torch.cuda.mem_get_info(index)[0]
    return AcceleratorMemory(
        kind="cuda",
        index=index,
        name=properties.name,
        total_bytes=properties.total_memory,
        available_bytes=available_bytes,
        allocated_bytes=torch.cuda.memory_allocated(index),
        reserved_bytes=torch.cuda.memory_reserved(index),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(index),
    )


def _mps_memory() -> AcceleratorMemory:
    """Total is what Metal recommends not to exceed; the rest of the machine shares it.

    Of what others hold it says nothing, so what is available is an upper bound.
    """
    import torch

    total_bytes = torch.mps.recommended_max_memory()
    reserved_bytes = torch.mps.driver_allocated_memory()
    return AcceleratorMemory(
        kind="mps",
        index=0,
        name=torch.backends.mps.get_name(),
        total_bytes=total_bytes,
        available_bytes=max(0, total_bytes - reserved_bytes),
        allocated_bytes=torch.mps.current_allocated_memory(),
        reserved_bytes=reserved_bytes,
        peak_reserved_bytes=None,
    )
