"""Standard streams that outlive whoever reads them."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

# A pipe without a reader, a terminal that was closed, and the former on Windows.
_READER_GONE = {errno.EPIPE, errno.EIO, errno.EINVAL}


class UnfailingStream(io.TextIOBase):
    """Writes to `stream` where that can be done; where it cannot, what is written is lost.

    A message that nobody reads is no reason to end what it tells of.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's own."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """All characters are written, or lost."""
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """What was written has left, or is lost."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether a terminal is, or was, at the other end."""
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._stream.fileno()


def hold_standard_streams() -> None:
    """Descriptors 0 to 2 are taken and `sys.stdout` and `sys.stderr` are there.

    Where they were closed, a file that is opened next would get one of them, and what libraries
    say of themselves would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest that is free, which is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")


def write_line(text: str) -> None:
    """A line of stdout is with whoever reads it. Raises BrokenPipeError where nobody does."""
    with _a_reader_that_left_told():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """`data`, as it is, is with whoever reads stdout. Raises BrokenPipeError where nobody does."""
    with _a_reader_that_left_told():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextmanager
def _a_reader_that_left_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _READER_GONE:
            raise
        raise BrokenPipeError(error.errno, error.strerror) from error


@contextmanager
def unread_output_lost() -> Iterator[None]:
    """Writing to stdout within the block succeeds also where nobody reads it any more."""
    try:
        yield
    except OSError as error:
        if error.errno not in _READER_GONE:
            raise
        discard_stdout()


def discard_stdout() -> None:
    """What is left to be written to stdout goes nowhere, without a failure at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
