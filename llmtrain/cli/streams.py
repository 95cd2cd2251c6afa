"""Standard streams that survive a reader that closed them."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

# A pipe without a reader, a closed terminal, and a pipe without a reader on Windows.
_READER_GONE = {errno.EPIPE, errno.EIO, errno.EINVAL}


class UnfailingStream(io.TextIOBase):
    """A text stream that discards what `stream` cannot take.

    A message that nobody reads must not end a training run.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """Write the text, or discard it; return its length."""
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if it can be."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Return True if the stream is a terminal, closed or not."""
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of the stream."""
        return self._stream.fileno()


def hold_standard_streams() -> None:
    """Open descriptors 0 to 2, `sys.stdout` and `sys.stderr` if they are closed.

    Otherwise a file opened later would get one of them, and messages of libraries would be
    written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")


def write_line(text: str) -> None:
    """Write a line to stdout and flush. Raises BrokenPipeError if nobody reads it."""
    with _broken_pipe_raised():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout and flush. Raises BrokenPipeError if nobody reads them."""
    with _broken_pipe_raised():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextmanager
def _broken_pipe_raised() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _READER_GONE:
            raise
        raise BrokenPipeError(error.errno, error.strerror) from error


@contextmanager
def unread_output_lost() -> Iterator[None]:
    """Discard output of the block that nobody reads, instead of failing."""
    try:
        yield
    except OSError as error:
        if error.errno not in _READER_GONE:
            raise
        discard_stdout()


def discard_stdout() -> None:
    """Send what is still buffered for stdout nowhere, so that exiting does not fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
