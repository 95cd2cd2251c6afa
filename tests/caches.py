"""Cache directories of tests: empty but for the native kernels, which take a minute to compile."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def own_cache(place: Path) -> Path:
    """Return `place` as a cache that shares the kernels of the cache of this moment."""
    return share_kernels(place, Path(os.environ["LLMTRAIN_CACHE_DIR"]))


def measured_cache(place: Path) -> Path:
    """Return `place` as a cache that shares kernels and measurements of that of this moment."""
    return share_measurements(own_cache(place), Path(os.environ["LLMTRAIN_CACHE_DIR"]))


def share_kernels(cache: Path, other: Path) -> Path:
    """Return `cache`, whose native kernels are those of another, where links can be made."""
    return _share(cache, other, "native", "locks")


def share_measurements(cache: Path, other: Path) -> Path:
    """Return `cache`, which finds what was measured in another, and the other in it."""
    return _share(cache, other, "probe")


def _share(cache: Path, other: Path, *names: str) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    for name in names if sys.platform != "win32" else ():
        shared = other / name
        shared.mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(shared)
    return cache
