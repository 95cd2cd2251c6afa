"""What it looks like when memory could not be had."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llmtrain.errors import DoesNotFitError
from llmtrain.units import format_bytes

# What may be about memory; `out_of_memory` says whether it is.
MEMORY_ERRORS = (MemoryError, RuntimeError, OSError)
# How the allocators of torch and of other libraries put it where they have no type for it.
_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
# What also has other causes: believed where nobody else gets memory either.
_UNCLEAR = (
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory object",
    "resource temporarily unavailable",
    "can't start new thread",
)
_PROBE_BYTES = 64 << 20
_SIZE = re.compile(r"tried to allocate (?:(\d+) bytes|([\d.]+ [KMG]iB))", re.IGNORECASE)


def out_of_memory(error: BaseException) -> str | None:
    """What could not be had, as a clause; None where the error is about something else."""
    text = str(error)
    if not _is_out_of_memory(error, text):
        return None
    size = _SIZE.search(text)
    if size is None:
        return "memory ran out"
    return f"{format_bytes(int(size[1])) if size[1] else size[2]} could not be allocated"


def _is_out_of_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    said = text.lower()
    return any(s in said for s in _SAYINGS) or (any(s in said for s in _UNCLEAR) and _is_short())


def _is_short() -> bool:
    """Whether memory cannot be had right now, while whoever failed still holds theirs."""
    try:
        bytearray(_PROBE_BYTES)
    except MemoryError:
        return True
    return False


@contextmanager
def memory_errors_mapped() -> Iterator[None]:
    """Within it, running out of memory is DoesNotFitError."""
    try:
        yield
    except MEMORY_ERRORS as error:
        problem = out_of_memory(error)
        if problem is None:
            raise
        raise DoesNotFitError(
            f"{problem}, outside of a training step",
            hint="close other programs or raise the limit, and give the same command again",
        ) from error
