"""What the C library's allocator can be told. Imports nothing heavy: it is told before torch."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

# glibc's mallopt parameters, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_HEAP_STEP_BYTES = 64 << 20
_USERS_OWN = ("GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> None:
    """Blocks that a training step frees stay in the process, where the C library is glibc.

    Otherwise glibc hands large ones back to the system, which clears them again for the next
    step. Has to come before the first large allocation; who set an allocator up is left alone.
    """
    if any(name in os.environ for name in _USERS_OWN) or not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_TOP_PAD, _HEAP_STEP_BYTES)


def return_free_memory() -> None:
    """Memory that was freed is the system's again: a GPU's, and where the C library is glibc.

    Other C libraries have no such call.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()
