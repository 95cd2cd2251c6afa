"""From one file to its documents. A file that is bad in any way is a DataError that names where."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tokenize
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from llmtrain.errors import DataError
from llmtrain.units import format_bytes
from llmtrain.untrusted import open_regular, read_bytes

HEAD_BYTES = 8192
# Of one document in memory, which takes several times as much while it is worked on.
LONGEST_BYTES = 32 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Document:
    """A text that stands for itself, and where it came from."""

    text: str
    origin: str
    part_at: int | None = None  # the byte of a very long text at which this part of it begins

    def place(self, offset: int) -> str:
        """Where in its file a byte of this text is."""
        return f"{self.origin}@{(self.part_at or 0) + offset}"

    def digest(self) -> bytes:
        """sha256 of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).digest()


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that holds documents. `origin` is its name in messages."""

    path: Path
    origin: str
    kind: Literal["text", "jsonl", "python"]
    is_gzip: bool = False


def read_documents(file: SourceFile, text_field: str) -> Iterator[Document]:
    """The documents in `file`, in order. Those without a single character are left out.

    A text of 32 MiB or more is several documents, each a part of it.
    """
    if file.kind == "jsonl":
        documents = _json_lines(file, text_field)
    elif file.kind == "python":
        documents = iter([Document(_python_text(file), file.origin)])
    else:
        documents = _text_parts(file)
    return (document for document in documents if document.text)


def read_head(file: SourceFile) -> bytes:
    """The first 8 KiB of what `file` holds, uncompressed."""
    with _opened(file) as stream:
        return stream.read(HEAD_BYTES)


def decode_python(data: bytes) -> str:
    """The text of a Python source file, in the encoding that it declares (PEP 263).

    Raises SyntaxError, LookupError or UnicodeError where that cannot be done.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    text = data.decode(encoding)
    text.encode()  # some codecs decode to lone surrogates, which are not text
    return text


@contextmanager
def readable(origin: str) -> Iterator[None]:
    """Failures to read inside the block are DataErrors that name `origin`."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        message = f"{origin} is not a complete gzip file: {error}"
        raise DataError(message, hint=f"check it with: gzip -t {origin}") from error
    except OSError as error:
        raise DataError(f"cannot read {origin}: {error.strerror or error}") from error


@contextmanager
def _opened(file: SourceFile) -> Iterator[BinaryIO]:
    with readable(file.origin), open_regular(file.path, follow_links=True) as raw:
        if file.is_gzip:
            with gzip.GzipFile(fileobj=raw) as uncompressed:
                yield cast("BinaryIO", uncompressed)
        else:
            yield raw


def read_python(path: Path) -> str:
    """The text of a file of the standard library. Raises what `decode_python` does, and OSError."""
    return decode_python(read_bytes(path, LONGEST_BYTES, follow_links=True))


def _text_parts(file: SourceFile) -> Iterator[Document]:
    """The whole text, or the parts of a long one, each of at most `LONGEST_BYTES`."""
    with _opened(file) as stream:
        data, offset = stream.read(LONGEST_BYTES), 0
        if len(data) < LONGEST_BYTES:
            yield Document(_decode(data, file.origin, 0), file.origin)
            return
        while data:
            end = _end_of_part(data)
            yield Document(_decode(data[:end], file.origin, offset), file.origin, offset)
            data, offset = data[end:] + stream.read(end), offset + end


def _end_of_part(data: bytes) -> int:
    """After the last line, or character where a line is very long; the end of the last part."""
    if len(data) < LONGEST_BYTES:
        return len(data)
    line_end = data.rfind(b"\n", LONGEST_BYTES // 2) + 1
    return line_end or next(
        (end for end in range(len(data) - 1, len(data) - 5, -1) if data[end] & 0xC0 != 0x80),
        len(data),  # no UTF-8, as decoding it will say
    )


def _decode(data: bytes, origin: str, first_byte: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        offset = first_byte + error.start
        message = f"{origin} is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset}"
        hint = "convert it first, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW"
        raise DataError(message, hint=hint) from error


def _python_text(file: SourceFile) -> str:
    try:
        with readable(file.origin):
            return read_python(file.path)
    except (SyntaxError, LookupError, UnicodeError) as error:
        raise DataError(f"{file.origin} cannot be decoded: {error}") from error


def _json_lines(file: SourceFile, text_field: str) -> Iterator[Document]:
    offset = 0
    with _opened(file) as stream:
        for number, line in enumerate(_lines(stream, file.origin), start=1):
            content = line.removeprefix(_BOM) if number == 1 else line
            if content.strip():
                place = f"{file.origin}:{number}"
                decoded = _decode(content, place, offset + len(line) - len(content))
                yield Document(_text_of(decoded, text_field, place), place)
            offset += len(line)


def _lines(stream: BinaryIO, origin: str) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(LONGEST_BYTES + 1):
        number += 1
        if len(line) > LONGEST_BYTES:
            message = f"{origin}:{number} is longer than {format_bytes(LONGEST_BYTES)}"
            raise DataError(message, hint="a text of that length can be a .txt file of its own")
        yield line


def _text_of(line: str, text_field: str, place: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place} is JSON, but not an object: {line.strip()[:40]}")
    if text_field not in record:
        raise _no_such_field(list(record), text_field, place)
    text = record[text_field]
    if not isinstance(text, str):
        raise DataError(f"{place}: field {text_field!r} is not a string: {json.dumps(text)[:40]}")
    return _well_formed(text, text_field, place)


def _no_such_field(fields: list[str], text_field: str, place: str) -> DataError:
    there = ", ".join(map(repr, fields[:20])) or "no fields"
    message = f"{place} has no field {text_field!r}; it has {there}"
    hint = "name the field that holds the text: --set data.text_field="
    return DataError(message, hint=hint + (fields[0] if fields else "NAME"))


def _well_formed(text: str, text_field: str, place: str) -> str:
    """`text`, which UTF-8 can hold: JSON can escape half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{place}: field {text_field!r} has half a surrogate pair at {error.start}"
        raise DataError(message) from error
    return text
