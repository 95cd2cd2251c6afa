"""Texts in a column of a .csv or .tsv, whose first row names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, Literal

from llmtrain.data.document import Document, RecordOptions
from llmtrain.data.formats.records import chat_document, document, require_field
from llmtrain.data.formats.text import BOM, decoded
from llmtrain.errors import DataError
from llmtrain.units import format_bytes

_QUOTE_HINT = 'a quote inside a quoted field is written twice: "as ""here"" "'


def comma_rows(stream: BinaryIO, origin: str, options: RecordOptions) -> Iterator[Document]:
    """Yield a document for every row of a .csv."""
    return _documents(stream, origin, options, ",")


def tab_rows(stream: BinaryIO, origin: str, options: RecordOptions) -> Iterator[Document]:
    """Yield a document for every row of a .tsv, which may have quotes like a .csv."""
    return _documents(stream, origin, options, "\t")


def _documents(
    stream: BinaryIO, origin: str, options: RecordOptions, delimiter: Literal[",", "\t"]
) -> Iterator[Document]:
    """Yield a document for every row that is not empty; `file:line` is its origin."""
    rows = _rows(stream, origin, options.longest_bytes, delimiter)
    place, header = next(rows, (origin, None))
    if header is None:
        return
    if options.rows != "text":
        column = None
    else:
        require_field(header, place, options)
        column = header.index(options.text_field)
    for place, row in rows:
        yield from options.attempt(partial(_document, row, column, header, place, options))


def _document(
    row: list[str], column: int | None, header: list[str], place: str, options: RecordOptions
) -> Document:
    if len(row) != len(header):
        message = f"{place}: the row has {len(row)} fields, and the header {len(header)}"
        hint = "a field with a separator or a line end in it has to be quoted"
        raise DataError(message, hint=hint)
    if column is None:
        return chat_document(dict(zip(header, row, strict=True)), place, options)
    return document(row[column], place, options)


def _rows(
    stream: BinaryIO, origin: str, longest_bytes: int, delimiter: str
) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows that are not empty, each with the place where it begins."""
    place, row_bytes = "", 0

    def lines() -> Iterator[str]:
        nonlocal row_bytes
        offset = 0
        for number, line in enumerate(iter(partial(stream.readline, longest_bytes + 1), b""), 1):
            row_bytes += len(line)
            if row_bytes > longest_bytes:
                message = f"{place}: the row is longer than {format_bytes(longest_bytes)}"
                raise DataError(message, hint=f"is a quote never closed? {_QUOTE_HINT}")
            yield _text(line, f"{origin}:{number}", offset)
            offset += len(line)

    # The limit is the process's; every field is bounded by its row, which `lines` bounds.
    csv.field_size_limit(max(csv.field_size_limit(), longest_bytes))
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        place, row_bytes = f"{origin}:{rows.line_num + 1}", 0
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{place}: {error}", hint=_QUOTE_HINT) from error
        if row is None:
            return
        if row:
            yield place, row


def _text(line: bytes, place: str, offset: int) -> str:
    """Decode a line that begins at the byte `offset` of its file."""
    nul = line.find(b"\0")
    if nul >= 0:
        raise DataError(f"{place} has a NUL byte at offset {offset + nul}")
    content = line if offset else line.removeprefix(BOM)
    return decoded(content, place, offset + len(line) - len(content))
