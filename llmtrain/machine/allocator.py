"""Set up the C library's allocator. Imports nothing heavy, as it comes before torch."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

from llmtrain.machine.rlimits import has_process_limit

# glibc's mallopt parameters, from malloc.h.
_FASTBINS, _TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = 1, -1, -2, -4
_HEAP_STEP_BYTES = 64 << 20
_TUNABLES = "GLIBC_TUNABLES"
# mallopt has no parameters for these.
_SETTINGS = "glibc.malloc.tcache_count=0:glibc.malloc.hugetlb=1"
_USER_VARIABLES = (_TUNABLES, "LD_PRELOAD")


def restart_with_allocator_settings() -> None:
    """Restart this process with glibc's thread cache off and huge pages on, unless they are.

    Small chunks that the cache keeps are between large free blocks, and torch's aligned
    allocations leave one beside every tensor: free blocks cannot be merged, the next step's
    tensors fit into none of them, and training takes up to a fifth more memory. Huge pages, where
    the system gives them to those who ask, spare a look-up of addresses for every 4 KiB. glibc
    reads its settings only when a process starts. Child processes do not inherit them.
    """
    if os.environ.get(_TUNABLES) == _SETTINGS:
        del os.environ[_TUNABLES]
        return
    if any(name in os.environ for name in _USER_VARIABLES) or not _has_glibc():
        return
    with suppress(OSError):
        environment = {**os.environ, _TUNABLES: _SETTINGS}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _has_glibc() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, ValueError):
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False


def keep_freed_memory() -> None:
    """Make glibc keep the blocks that a training step frees.

    Otherwise it returns large ones to the system, which clears them again for the next step. To
    be called before the first large allocation. An allocator that the user set up is not changed.
    """
    if any(name in os.environ for name in _USER_VARIABLES) or not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_FASTBINS, 0)
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        # With this each thread that allocates maps 64 MiB at once. Under a limit on mapped memory
        # a few threads would use it up, and libraries crash when small allocations fail.
        if not has_process_limit():
            mallopt(_TOP_PAD, _HEAP_STEP_BYTES)


def return_free_memory() -> None:
    """Return freed memory to the system: glibc's, and that of torch's GPU caches."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()
