"""Cache directories of tests: empty but for the native kernels, which take a minute to compile."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def own_cache(place: Path) -> Path:
    """Return `place` as a cache that shares the kernels of the cache of this moment."""
    return share_kernels(place, Path(os.environ["LLMTRAIN_CACHE_DIR"]))


def share_kernels(cache: Path, other: Path) -> Path:
    """Return `cache`, whose native kernels are those of another, where links can be made."""
    cache.mkdir(parents=True, exist_ok=True)
    for name in ("native", "locks") if sys.platform != "win32" else ():
        shared = other / name
        shared.mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(shared)
    return cache
