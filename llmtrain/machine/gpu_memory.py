"""Read the memory of GPUs: through torch in the process that uses them, else through the driver."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from llmtrain.machine.memory_readings import AcceleratorMemory
from llmtrain.machine.nvidia import read_nvidia_gpus


def read_accelerator_memory(cuda_index: int | None = None) -> tuple[AcceleratorMemory, ...]:
    """Return the memory of every GPU that torch can use, or only of one CUDA device.

    Reading a CUDA device opens a context on it, which takes some hundred MB: a rank should name
    its own.
    """
    import torch

    if torch.cuda.is_available():
        indices = range(torch.cuda.device_count()) if cuda_index is None else (cuda_index,)
        return tuple(_cuda_memory(index) for index in indices)
    return (_mps_memory(),) if torch.backends.mps.is_available() else ()


def read_accelerators_from_outside() -> tuple[AcceleratorMemory, ...]:
    """Return every GPU's memory without the allocator's figures, which only its process knows.

    nvidia-smi is preferred, as it takes no GPU memory itself.
    """
    found = read_nvidia_gpus()
    if found is not None or not _may_have_a_gpu():
        return found or ()
    return tuple(_from_outside(reading) for reading in read_accelerator_memory())


def _may_have_a_gpu() -> bool:
    """Return False if torch, whose import takes hundreds of MB, would find no GPU."""
    drivers = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # NVIDIA's and AMD's
    return sys.platform != "linux" or any(driver.exists() for driver in drivers)


def _from_outside(reading: AcceleratorMemory) -> AcceleratorMemory:
    available_bytes = reading.available_bytes if reading.kind == "cuda" else None
    return AcceleratorMemory(
        reading.kind, reading.index, reading.name, reading.total_bytes, available_bytes
    )


def _cuda_memory(index: int) -> AcceleratorMemory:
    import torch

    properties = torch.cuda.get_device_properties(index)
    available_bytes: int | None = None
    with suppress(RuntimeError):  # too full to open a context, or used exclusively
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
    """Return Metal's figures. The total is its recommended maximum.

    Other processes' use is not reported, so `available_bytes` is an upper bound.
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
