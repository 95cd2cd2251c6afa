"""What the C library's allocator can be told."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def return_free_memory() -> None:
    """Memory that was freed is the system's again, where the C library is glibc.

    Elsewhere there is no such call, and nothing happens.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
