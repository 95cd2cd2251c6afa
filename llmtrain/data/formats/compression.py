"""Files that are packed as a whole: .gz, .bz2, .xz and .zst, several packed parts in a row too."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from llmtrain.data.formats.streams import CheckedStream, UnpackedMeter, library_missing
from llmtrain.errors import DataError


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to pack. `open` gives a stream of what is unpacked.

    It raises ImportError where its library is not installed, which the `extra` brings, if any.
    """

    name: str
    open: Callable[[BinaryIO], Any]
    failures: tuple[type[Exception], ...] = (EOFError,)
    extra: str = ""


def _bz2_file(stream: BinaryIO) -> Any:
    import bz2  # a Python can be built without it, and without lzma

    return bz2.BZ2File(stream)


def _xz_file(stream: BinaryIO) -> Any:
    import lzma

    return _OwnError(lzma.LZMAFile(stream), lzma.LZMAError)


def _zstd_file(stream: BinaryIO) -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return _OwnError(zstd.ZstdFile(stream), zstd.ZstdError)


class _OwnError:
    """A file whose own error, which may not be there to be named, is an EOFError."""

    def __init__(self, file: Any, error: type[Exception]) -> None:
        self._file = file
        self._error = error

    def read1(self, size: int) -> bytes:
        try:
            return bytes(self._file.read1(size))
        except self._error as error:
            raise EOFError(str(error)) from error

    def close(self) -> None:
        self._file.close()


CODECS: Mapping[str, Codec] = {
    ".gz": Codec(
        "gzip file",
        lambda stream: gzip.GzipFile(fileobj=stream),
        (EOFError, gzip.BadGzipFile, zlib.error),
    ),
    ".bz2": Codec("bzip2 file", _bz2_file),
    ".xz": Codec("xz file", _xz_file),
    ".zst": Codec("zstd file", _zstd_file, extra="zstd"),
}


@contextmanager
def unpacked(
    stream: io.BufferedReader, suffix: str, origin: str, meter: UnpackedMeter
) -> Iterator[io.BufferedReader]:
    """What `stream` holds, unpacked as `suffix` says; as it is where that is empty."""
    if not suffix:
        yield stream
        return
    codec = CODECS[suffix]
    if not stream.peek(1):
        raise DataError(f"{origin} is not a complete {codec.name}: it is empty")
    try:
        opened = codec.open(stream)
    except ImportError as error:
        raise library_missing(origin, codec.extra) from error
    with closing(opened) as inner:
        checked = CheckedStream(
            inner, origin, what=codec.name, failures=codec.failures, meter=meter
        )
        yield checked.buffered()
