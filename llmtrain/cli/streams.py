"""Standard streams that take any text and survive a reader that closed them."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from llmtrain.pipes import READER_GONE

_UNREAD = READER_GONE | {errno.EIO}  # EIO: of a closed terminal


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


class _NamedStdout(io.TextIOWrapper):
    """stdout, which its errors name also where a library writes, as for `--help`."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        self._closes_with = stream  # which closes the file when nothing refers to it
        super().__init__(
            stream.buffer,
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str, /) -> int:
        with _stdout_named():
            return super().write(text)

    def flush(self) -> None:
        with _stdout_named():
            super().flush()


def set_up_standard_streams() -> None:
    """Open descriptors 0 to 2, `sys.stdout` and `sys.stderr` if they are closed; accept any text.

    Otherwise a file opened later would get one of them, and messages of libraries would be
    written into it. Pipes and files get UTF-8, a terminal its own encoding, and everything
    what PYTHONIOENCODING names; characters that the encoding lacks are escaped. What fails on
    stdout is named.
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_chosen = stream.isatty() or "PYTHONIOENCODING" in os.environ
            encoding = stream.encoding if is_chosen else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = _NamedStdout(sys.stdout)


def write_text(text: str, *, flush: bool = False) -> None:
    """Write text to stdout. Raises BrokenPipeError if nobody reads it."""
    with _stdout_named():
        sys.stdout.write(text)
        if flush:
            sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout and flush. Raises BrokenPipeError if nobody reads them."""
    with _stdout_named():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextmanager
def _stdout_named() -> Iterator[None]:
    """Name stdout in errors of the block. Raises BrokenPipeError if nobody reads it."""
    try:
        yield
    except OSError as error:
        kind = BrokenPipeError if error.errno in _UNREAD else OSError
        raise kind(error.errno, error.strerror, "stdout") from error


@contextmanager
def unread_output_lost() -> Iterator[None]:
    """Discard output of the block that nobody reads, instead of failing."""
    try:
        with _stdout_named():
            yield
    except BrokenPipeError:
        discard_stdout()


def discard_stdout() -> None:
    """Send what is still buffered for stdout nowhere, so that exiting does not fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
