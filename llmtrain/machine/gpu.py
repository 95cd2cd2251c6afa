"""What kernels and their timing ask a GPU for."""

from __future__ import annotations

import torch


def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a CUDA GPU has; 1 of another device."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def forget_peak_memory() -> None:
    """Return what torch keeps of CUDA memory, and count its peak from here on."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
