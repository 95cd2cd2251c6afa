"""What the C library's allocator can be told. Imports nothing heavy: it is told before torch."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

# glibc's mallopt parameters, from malloc.h.
_FASTBINS, _TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = 1, -1, -2, -4
_HEAP_STEP_BYTES = 64 << 20
_TUNABLES = "GLIBC_TUNABLES"
_NO_THREAD_CACHE = "glibc.malloc.tcache_count=0"  # mallopt has no such parameter
_USERS_OWN = (_TUNABLES, "LD_PRELOAD")


def begin_without_thread_cache() -> None:
    """This process joins all that it frees; where glibc did not, it has begun anew.

    Small pieces that glibc keeps for each thread lie between large free blocks, and torch's
    aligned allocations leave one beside every tensor: the next step's tensors fit into none of the
    blocks, and a training takes up to a fifth more memory. glibc reads that setting only when a
    process begins. What it starts itself is not told.
    """
    if os.environ.get(_TUNABLES) == _NO_THREAD_CACHE:
        del os.environ[_TUNABLES]
        return
    if any(name in os.environ for name in _USERS_OWN) or not _has_glibc():
        return
    with suppress(OSError):
        anew = {**os.environ, _TUNABLES: _NO_THREAD_CACHE}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], anew)


def _has_glibc() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, ValueError):
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False


def keep_freed_memory() -> None:
    """Blocks that a training step frees stay in the process, where the C library is glibc.

    Otherwise glibc hands large ones back to the system, which clears them again for the next
    step. Has to come before the first large allocation; who set an allocator up is left alone.
    """
    if any(name in os.environ for name in _USERS_OWN) or not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_FASTBINS, 0)
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
