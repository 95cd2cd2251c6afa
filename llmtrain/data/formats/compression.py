"""Compressed files: .gz, .bz2, .xz and .zst, also of several compressed parts in a row."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from llmtrain.data.formats.streams import CheckedStream, UnpackedMeter, library_missing
from llmtrain.errors import DataError

if TYPE_CHECKING:
    import bz2
    import lzma

_PACKED_BYTES = 1 << 17
Failures: TypeAlias = tuple[type[Exception], ...]


@dataclass(frozen=True, slots=True)
class Codec:
    """A compression method.

    `open` returns a stream of the unpacked content, and what it raises for damage besides an
    OSError. It raises ImportError if its library is not installed; `extra`, if any, installs it.
    """

    name: str
    open: Callable[[BinaryIO], tuple[Any, Failures]]
    extra: str = ""


def _gzip_file(stream: BinaryIO) -> tuple[Any, Failures]:
    return gzip.GzipFile(fileobj=stream), (EOFError, gzip.BadGzipFile, zlib.error)


def _bz2_file(stream: BinaryIO) -> tuple[Any, Failures]:
    import bz2  # a Python can be built without it, and without lzma

    return _Parts(stream, bz2.BZ2Decompressor), (EOFError,)


def _xz_file(stream: BinaryIO) -> tuple[Any, Failures]:
    import lzma

    return _Parts(stream, lzma.LZMADecompressor, pads=True), (EOFError, lzma.LZMAError)


def _zstd_file(stream: BinaryIO) -> tuple[Any, Failures]:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdFile(stream), (EOFError, zstd.ZstdError)


class _Parts:
    """The unpacked content of compressed parts in a row. Raises EOFError for anything after them.

    Python's own classes stop there silently, and would lose a damaged part and all after it.
    """

    def __init__(
        self,
        stream: BinaryIO,
        new: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor],
        *,
        pads: bool = False,
    ) -> None:
        """Read the parts of `stream`. With `pads`, zeros by fours may be between them."""
        self._stream = stream
        self._new = new
        self._pads = pads
        self._part = new()
        self._packed = b""
        self._is_over = False

    def read1(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end."""
        while True:
            if self._is_over or (self._part.eof and not self._begin_next()):
                return b""
            packed = b""
            if self._part.needs_input:
                packed, self._packed = self._packed or self._stream.read(_PACKED_BYTES), b""
                if not packed:
                    raise EOFError("it ends before its end-of-stream marker")
            if data := self._part.decompress(packed, size):
                return data

    def _begin_next(self) -> bool:
        """Begin the next part; return whether there is one."""
        rest, padding = self._part.unused_data or self._stream.read(_PACKED_BYTES), 0
        while self._pads and rest and not rest.strip(b"\0"):
            padding += len(rest)
            rest = self._stream.read(_PACKED_BYTES)
        bare = rest.lstrip(b"\0") if self._pads else rest
        padding += len(rest) - len(bare)
        if padding % 4:
            raise EOFError(f"{padding} zeros follow a packed part")
        self._is_over = not bare
        if bare:
            self._part, self._packed = self._new(), bare
        return bool(bare)

    def close(self) -> None:
        """Close this stream; the one below stays open."""


CODECS: Mapping[str, Codec] = {
    ".gz": Codec("gzip file", _gzip_file),
    ".bz2": Codec("bzip2 file", _bz2_file),
    ".xz": Codec("xz file", _xz_file),
    ".zst": Codec("zstd file", _zstd_file, extra="zstd"),
}


@contextmanager
def unpacked(
    stream: io.BufferedReader, suffix: str, origin: str, meter: UnpackedMeter
) -> Iterator[io.BufferedReader]:
    """Yield the content of `stream`, decompressed by `suffix`; unchanged if that is empty."""
    if not suffix:
        yield stream
        return
    codec = CODECS[suffix]
    if not stream.peek(1):
        raise DataError(f"{origin} is not a complete {codec.name}: it is empty")
    try:
        opened, failures = codec.open(stream)
    except ImportError as error:
        raise library_missing(origin, codec.extra) from error
    with closing(opened) as inner:
        checked = CheckedStream(inner, origin, what=codec.name, failures=failures, meter=meter)
        yield checked.buffered()
