"""How many programs a kernel is launched with, and how much each works on at once."""

from __future__ import annotations

import torch

from llmtrain.machine.gpu import multiprocessors

# Programs a multiprocessor holds at once, that sum a gradient over the rows they go through.
_PROGRAMS_PER_MULTIPROCESSOR = 8


def rows_at_once(elements: int, width: int) -> int:
    """Return the power of two of rows that are about so many elements; 1 at the least."""
    return 1 << max(1, elements // width).bit_length() - 1


def warps(columns: int) -> int:
    """Return how many warps of 32 threads work on a row of so many elements: 16 a thread."""
    return min(16, max(2, columns // 512))


def programs(tiles: int, device: torch.device) -> int:
    """Return how many programs share the tiles of a kernel whose programs each go through many."""
    return min(tiles, multiprocessors(device) * _PROGRAMS_PER_MULTIPROCESSOR)
