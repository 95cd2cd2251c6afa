"""Byte streams that raise DataError, with the place, for damage and read errors."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from llmtrain.data.document import Limits
from llmtrain.errors import DataError
from llmtrain.units import format_bytes

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

HEAD_BYTES = 8192
BUFFER_BYTES = 1 << 16


class UnpackedMeter:
    """A count of the bytes that one file unpacks to, in all layers and members together."""

    def __init__(self, origin: str, packed_bytes: int, limits: Limits) -> None:
        self._origin = origin
        self._packed_bytes = packed_bytes
        self._most_bytes = max(limits.unpacked_bytes, limits.unpacked_ratio * packed_bytes)
        self._bytes = 0

    def add(self, count: int) -> None:
        """Count more unpacked bytes. Raises DataError for a decompression bomb."""
        self._bytes += count
        if self._bytes > self._most_bytes:
            raise DataError(
                f"{self._origin} has {format_bytes(self._packed_bytes)} and unpacks to more than "
                f"{format_bytes(self._most_bytes)}, as no text does",
                hint="if it is text, unpack it and name what comes out",
            )


class OneRead(Protocol):
    """A stream with `read1`, which returns what was read before a failure."""

    def read1(self, size: int, /) -> bytes: ...


class CheckedStream(io.RawIOBase):
    """A stream that reads `inner`, and raises DataError that names `origin` for each failure.

    `failures`: what `inner` raises if its data is damaged, as opposed to unreadable.
    `size_bytes`: the least size that it must have.
    """

    def __init__(
        self,
        inner: OneRead,
        origin: str,
        *,
        what: str = "file",
        failures: tuple[type[Exception], ...] = (),
        meter: UnpackedMeter | None = None,
        size_bytes: int = 0,
    ) -> None:
        self._inner = inner
        self._origin = origin
        self._what = what
        self._failures = failures
        self._meter = meter
        self._size_bytes = size_bytes
        self.position_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill all of `buffer` except at the end, so that reads always have the same sizes."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and (data := self._read(len(view) - filled)):
            view[filled : filled + len(data)] = data
            filled += len(data)
        if not filled and len(view) and self.position_bytes < self._size_bytes:
            raise DataError(
                f"{self._origin} shrank while it was read: "
                f"{self._size_bytes} bytes before, {self.position_bytes} now",
                hint="give the command again once no program writes the file",
            )
        return filled

    def _read(self, size: int) -> bytes:
        place = f"after {self.position_bytes} bytes"
        with map_damage(self._origin, self._what, self._failures, lambda: place):
            data = self._inner.read1(size)
        self.position_bytes += len(data)
        if self._meter is not None:
            self._meter.add(len(data))
        return data

    def buffered(self) -> io.BufferedReader:
        """Return the stream with a buffer that can peek at least `HEAD_BYTES`."""
        return io.BufferedReader(self, BUFFER_BYTES)


def head_of(stream: io.BufferedReader) -> bytes:
    """Return the first bytes of an unread stream, without consuming them."""
    return stream.peek(HEAD_BYTES)[:HEAD_BYTES]


@contextmanager
def readable(origin: str) -> Iterator[None]:
    """Convert an OSError inside the block to a DataError that names `origin`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {origin}: {error.strerror or error}") from error


@contextmanager
def map_damage(
    origin: str,
    what: str,
    failures: tuple[type[Exception], ...],
    place: Callable[[], str] = str,
) -> Iterator[None]:
    """Convert `failures` inside the block to a DataError: `origin` is not a complete `what`.

    So is an OSError without an errno: it is from a library, and not from the system.
    """
    try:
        yield
    except failures as error:
        raise _damage(origin, what, error, place()) from error
    except OSError as error:
        if error.errno is None:
            raise _damage(origin, what, error, place()) from error
        raise DataError(f"cannot read {origin}: {error.strerror or error}") from error


def _damage(origin: str, what: str, error: Exception, place: str) -> DataError:
    said = [" ".join(str(error).split()) or type(error).__name__, place]
    message = f"{origin} is not a complete {what}: {', '.join(filter(None, said))}"
    return DataError(message, hint=how_to_leave_out(origin))


def library_missing(origin: str, extra: str) -> DataError:
    """Return the error that reading `origin` needs an extra of this package."""
    message = f"reading {origin} takes a library that is not installed"
    install = f"pip install 'llmtrain[{extra}]'" if extra else "take a Python that has it"
    hint = f"{install}, or --set 'data.exclude=[\"{_name_of(origin)}\"]'"
    return DataError(message, hint=hint)


def how_to_leave_out(origin: str) -> str:
    """Return a hint for a damaged file; for a member, one about its archive."""
    name = _name_of(origin)
    return f"make it again; in a directory it can be left out: --set 'data.exclude=[\"{name}\"]'"


def _name_of(origin: str) -> str:
    return re.split(r"[/\\]", origin.partition("!")[0])[-1]
