"""Read GPU memory through nvidia-smi: without torch, and without using any."""

from __future__ import annotations

import shutil
import subprocess

from llmtrain.machine.memory_readings import AcceleratorMemory

_TOOL = "nvidia-smi"
_COLUMNS = "index,memory.total,memory.free,name"  # the name last: it may hold a comma
_MIB = 1 << 20
_TIMEOUT_S = 10


def read_nvidia_gpus() -> tuple[AcceleratorMemory, ...] | None:
    """Return every NVIDIA GPU in the driver's order; None where nvidia-smi is missing or fails."""
    if shutil.which(_TOOL) is None:
        return None
    command = [_TOOL, f"--query-gpu={_COLUMNS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
        return parse_nvidia_smi(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def parse_nvidia_smi(text: str) -> tuple[AcceleratorMemory, ...]:
    """Return the GPUs in lines of `index, total, free, name`, in MiB. Raises ValueError."""
    return tuple(_gpu(line) for line in text.splitlines() if line.strip())


def _gpu(line: str) -> AcceleratorMemory:
    index, total, free, name = (part.strip() for part in line.split(",", 3))
    available_bytes = int(free) * _MIB if free.isdecimal() else None  # [N/A]: unknown
    return AcceleratorMemory("cuda", int(index), name, int(total) * _MIB, available_bytes)
