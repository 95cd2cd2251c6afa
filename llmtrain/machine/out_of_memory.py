"""Recognise errors that are caused by exhausted memory."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llmtrain.errors import DoesNotFitError
from llmtrain.units import format_bytes

# Errors that may be about memory; `out_of_memory` decides.
MEMORY_ERRORS = (MemoryError, RuntimeError, OSError)
# Messages of allocators of torch and other libraries that have no error type for it.
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
# Messages that also have other causes: counted if no memory can be allocated now.
_UNCLEAR = (
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory object",
    "resource temporarily unavailable",
    "can't start new thread",
)
_PROBE_BYTES = 256 << 20  # more than what a primitive of oneDNN takes for itself
_SIZE = re.compile(r"tried to allocate (?:(\d+) bytes|([\d.]+ [KMG]iB))", re.IGNORECASE)


def out_of_memory(error: BaseException) -> str | None:
    """Return a clause that names the failed allocation; None for any other error."""
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
    message = text.lower()
    return any(s in message for s in _MESSAGES) or (
        any(s in message for s in _UNCLEAR) and _is_short()
    )


def _is_short() -> bool:
    """Return True if memory cannot be allocated now, while the failed code still holds its own."""
    try:
        bytearray(_PROBE_BYTES)
    except MemoryError:
        return True
    return False


@contextmanager
def memory_errors_mapped() -> Iterator[None]:
    """Raise DoesNotFitError if memory runs out within the block."""
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
