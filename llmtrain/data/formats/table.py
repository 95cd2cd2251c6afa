"""Texts in a column of a .csv or .tsv, whose first row names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, Literal

from llmtrain.data.document import Document, RecordOptions
from llmtrain.data.formats.records import document, require_field
from llmtrain.data.formats.text import decoded
from llmtrain.errors import DataError
from llmtrain.units import format_bytes

_BOM = b"\xef\xbb\xbf"
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
    require_field(header, place, options)
    column = header.index(options.text_field)
    if header.count(options.text_field) > 1:
        raise DataError(f"{place} names the column {options.text_field!r} twice")
    for place, row in rows:
        yield from options.attempt(partial(_document, row, column, header, place, options))


def _document(
    row: list[str], column: int, header: list[str], place: str, options: RecordOptions
) -> Document:
    if len(row) != len(header):
        message = f"{place}: the row has {len(row)} fields, and the header {len(header)}"
        hint = "a field with a separator or a line end in it has to be quoted"
        raise DataError(message, hint=hint)
    return document(row[column], place, options)


def _rows(
    stream: BinaryIO, origin: str, longest_bytes: int, delimiter: str
) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows that are not empty, each with the place where it begins."""
    lines = _Lines(stream, origin, longest_bytes)
    # The limit is the process's; every field is bounded by its row, which `_Lines` bounds.
    csv.field_size_limit(max(csv.field_size_limit(), longest_bytes))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_row()
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{lines.row_place}: {error}", hint=_QUOTE_HINT) from error
        if row is None:
            return
        if row:
            yield lines.row_place, row


class _Lines:
    """The lines of a table as text, each with its end. Raises DataError for an overlong row."""

    def __init__(self, stream: BinaryIO, origin: str, longest_bytes: int) -> None:
        self._stream = stream
        self._origin = origin
        self._longest_bytes = longest_bytes
        self._number = 0
        self._offset = 0
        self._row_number = 1
        self._row_bytes = 0

    @property
    def row_place(self) -> str:
        """The place where the current row began."""
        return f"{self._origin}:{self._row_number}"

    def begin_row(self) -> None:
        """Start to measure another row."""
        self._row_number, self._row_bytes = self._number + 1, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._longest_bytes + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._row_bytes += len(line)
        if self._row_bytes > self._longest_bytes:
            message = (
                f"{self.row_place}: the row is longer than {format_bytes(self._longest_bytes)}"
            )
            raise DataError(message, hint=f"is a quote never closed? {_QUOTE_HINT}")
        text = self._text(line)
        self._offset += len(line)
        return text

    def _text(self, line: bytes) -> str:
        nul = line.find(b"\0")
        place = f"{self._origin}:{self._number}"
        if nul >= 0:
            raise DataError(f"{place} has a NUL byte at offset {self._offset + nul}")
        content = line.removeprefix(_BOM) if self._number == 1 else line
        return decoded(content, place, self._offset + len(line) - len(content))
