"""What kernels of our own ask a GPU for."""

from __future__ import annotations

import torch


def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a CUDA GPU has; 1 of another device."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
