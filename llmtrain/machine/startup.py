"""Set up the environment before torch is imported. Imports nothing heavy."""

from __future__ import annotations

import os
import sys

from llmtrain.files import cache_directory
from llmtrain.machine.allocator import keep_freed_memory
from llmtrain.machine.cgroup import read_limits
from llmtrain.machine.cpu import allowed_cores

_FEW_CORES = 4
# Of GNU's OpenMP. Measured on two cores of one Xeon: docs/measurements/cpu.md, "How threads wait".
_FEW_CORES_SPINS = "5000"
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_CUDA_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second: its old name


def prepare_for_torch() -> None:
    """Set up the allocators, the compiler's cache and how threads wait.

    Freed memory stays in the process. On a GPU free blocks are merged, where fragmentation took up
    to a seventh of the memory. Compiled kernels are kept across reboots. Variables that the
    user has set are not changed.
    """
    keep_freed_memory()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_directory() / "compiled"))
    if sys.platform.startswith("linux") and not any(name in os.environ for name in _CUDA_ALLOCATOR):
        os.environ[_CUDA_ALLOCATOR[0]] = "expandable_segments:True"
    let_threads_sleep()


def let_threads_sleep() -> None:
    """Set up how threads wait, unless the user has: where cores are few they sleep after a moment.

    By default they spin for milliseconds, which costs most of the speed where another program needs
    the core. To sleep at once makes the many short waits of native kernels longer.
    """
    if _cores() <= _FEW_CORES and not any(name in os.environ for name in _WAITING):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": _FEW_CORES_SPINS}


def _cores() -> float:
    """Return the logical cores that this process may keep busy, which a container limits."""
    allowed, quota = allowed_cores(), read_limits().quota_cores
    limits = [os.cpu_count() or 1, len(allowed) if allowed else None, quota]
    return min(limit for limit in limits if limit is not None)
