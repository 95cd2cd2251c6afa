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

from llmtrain.device.cgroup import read_limited_groups, read_limits, read_memory_usage
from llmtrain.device.pressure import Bound
from llmtrain.device.readers import PsutilReader, standard_reader
from llmtrain.device.readings import (
    AcceleratorMemory,
    Available,
    MemoryReader,
    ProcessMemory,
    SystemMemory,
)

__all__ = [
    "AcceleratorMemory",
    "ProcessMemory",
    "SystemMemory",
    "peak_resident_bytes",
    "read_accelerator_memory",
    "read_bounds",
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


def read_process_memory() -> ProcessMemory:
    """The memory of this process and its descendants. Looks at every process: milliseconds."""
    return _ask(lambda reader: reader.process_tree())


def resident_bytes() -> int:
    """What this process alone holds now. Microseconds: fit for every step."""
    return _ask(lambda reader: reader.resident_bytes())


def peak_resident_bytes() -> int:
    """The most that this process alone held since it started. Fit for every step."""
    return standard_reader().own_peak_resident_bytes()


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
    free_bytes: int | None = None
    with suppress(RuntimeError):  # too full to open a context, or taken by another process
        free_bytes = torch.cuda.mem_get_info(index)[0]
    return AcceleratorMemory(
        kind="cuda",
        index=index,
        name=properties.name,
        total_bytes=properties.total_memory,
        free_bytes=free_bytes,
        allocated_bytes=torch.cuda.memory_allocated(index),
        reserved_bytes=torch.cuda.memory_reserved(index),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(index),
    )


def _mps_memory() -> AcceleratorMemory:
    """Total is what Metal recommends not to exceed; the rest of the machine shares it."""
    import torch

    return AcceleratorMemory(
        kind="mps",
        index=0,
        name=torch.backends.mps.get_name(),
        total_bytes=torch.mps.recommended_max_memory(),
        free_bytes=None,
        allocated_bytes=torch.mps.current_allocated_memory(),
        reserved_bytes=torch.mps.driver_allocated_memory(),
        peak_reserved_bytes=None,
    )
