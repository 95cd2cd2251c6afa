"""Plain text, decoded strictly: a file with any invalid byte is an error."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator
from typing import BinaryIO

from llmtrain.data.document import Document, RecordOptions
from llmtrain.errors import DataError
from llmtrain.units import format_bytes
from llmtrain.untrusted import CONVERT_HINT

BOM = b"\xef\xbb\xbf"


def text_parts(stream: BinaryIO, origin: str, options: RecordOptions) -> Iterator[Document]:
    """Yield the text, or parts of a long one of at most `options.longest_bytes`."""
    longest_bytes = options.longest_bytes
    data, offset = stream.read(longest_bytes), 0
    if len(data) < longest_bytes:
        yield from options.attempt(lambda: Document(decoded(data, origin, 0), origin))
        return
    while data:
        end = _end_of_part(data, longest_bytes)
        yield Document(decoded(data[:end], origin, offset), origin, offset)
        data, offset = data[end:] + stream.read(end), offset + end


def _end_of_part(data: bytes, longest_bytes: int) -> int:
    """Return the end of the last line, or of the last character if a line is very long."""
    if len(data) < longest_bytes:
        return len(data)
    line_end = data.rfind(b"\n", longest_bytes // 2) + 1
    return line_end or next(
        (end for end in range(len(data) - 1, len(data) - 5, -1) if data[end] & 0xC0 != 0x80),
        len(data),  # not UTF-8: decoding it will raise the error
    )


def decoded(data: bytes, origin: str, first_byte: int) -> str:
    """Decode UTF-8 that begins at `first_byte`. Raises DataError with the offset in the file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(origin, data[error.start], first_byte + error.start) from error


def not_utf8(origin: str, byte: int, offset: int) -> DataError:
    """Return the error about a byte that is not UTF-8."""
    message = f"{origin} is not UTF-8: byte 0x{byte:02x} at offset {offset}"
    return DataError(message, hint=CONVERT_HINT)


def lines_of(stream: BinaryIO, origin: str, longest_bytes: int) -> Iterator[bytes]:
    """Yield lines with their ends. Raises DataError for one that is too long for memory."""
    number = 0
    while line := stream.readline(longest_bytes + 1):
        number += 1
        if len(line) > longest_bytes:
            message = f"{origin}:{number} is longer than {format_bytes(longest_bytes)}"
            raise DataError(message, hint="a text of that length can be a .txt file of its own")
        yield line


def python_source(stream: BinaryIO, origin: str, options: RecordOptions) -> Iterator[Document]:
    """Yield a Python source file, decoded as it declares."""
    data = stream.read(options.longest_bytes + 1)
    if len(data) > options.longest_bytes:
        raise DataError(f"{origin} is longer than {format_bytes(options.longest_bytes)}")
    try:
        text = decode_python(data)
    except (SyntaxError, LookupError, UnicodeError) as error:
        raise DataError(f"{origin} cannot be decoded: {error}") from error
    yield Document(text, origin)


def decode_python(data: bytes) -> str:
    """Decode a Python source file in the encoding that it declares (PEP 263).

    Raises SyntaxError, LookupError or UnicodeError if it cannot be decoded.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    text = data.decode(encoding)
    text.encode()  # some codecs decode to lone surrogates, which are not text
    return text
