"""Texts in a column of a .parquet, .arrow or .feather, a batch of rows in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

from llmtrain.data.chat.rows import COLUMNS
from llmtrain.data.document import Document, RecordOptions
from llmtrain.data.formats.records import chat_document, document, require_field
from llmtrain.data.formats.streams import library_missing, map_damage
from llmtrain.data.formats.text import decoded
from llmtrain.errors import DataError
from llmtrain.units import format_bytes

_BATCH_BYTES = 8 << 20
_MOST_ROWS = 4096
_ARROW_FILE = b"ARROW1"
# A row group that unpacks to more than this, and to this many times the file, is not text.
_GROUP_BYTES = 1 << 30
_GROUP_RATIO = 300


def parquet_rows(stream: BinaryIO, origin: str, options: RecordOptions) -> Iterator[Document]:
    """Yield a document for every row; `file[row]` is its origin."""
    with _arrow(origin, "parquet file") as pa:
        import pyarrow.parquet

        known = pyarrow.parquet.ParquetFile(stream)
        chat = _chat_columns(known.schema_arrow, options)
        path = () if chat else _text_path(pa, known.schema_arrow, origin, options)
        file = pyarrow.parquet.ParquetFile(
            stream,
            metadata=known.metadata,
            # A value that many rows share is stored once in memory until its row is read.
            read_dictionary=list(path) if len(path) == 1 else None,
            buffer_size=1 << 20,
            pre_buffer=False,
        )
        batches = file.iter_batches(
            _rows_in_batch(file.metadata, stream.seek(0, os.SEEK_END), origin),
            columns=chat or [options.text_field],
            use_threads=False,
        )
        if chat:
            yield from _chat_rows(batches, origin, options)
            return
        columns = (batch.column(0) for batch in batches)
        yield from _documents(columns, path[1:], origin, options)


def arrow_rows(stream: BinaryIO, origin: str, options: RecordOptions) -> Iterator[Document]:
    """Yield a document for every row of an Arrow file (or Feather), or of a stream in a file."""
    with _arrow(origin, "arrow file") as pa:
        is_file = stream.read(len(_ARROW_FILE)) == _ARROW_FILE
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        if chat := _chat_columns(reader.schema, options):
            yield from _chat_rows((batch.select(chat) for batch in batches), origin, options)
            return
        path = _text_path(pa, reader.schema, origin, options)
        column = reader.schema.get_field_index(path[0])
        columns = (batch.column(column) for batch in batches)
        yield from _documents(columns, path[1:], origin, options)


@contextmanager
def _arrow(origin: str, what: str) -> Iterator[Any]:
    """Yield pyarrow; convert what it raises inside the block to a DataError that names `origin`."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise library_missing(origin, "parquet") from error
    # A damaged size may exceed the memory, and a damaged name may be invalid Unicode.
    with map_damage(origin, what, (pa.ArrowException, UnicodeDecodeError, EOFError, MemoryError)):
        yield pa


def _chat_columns(schema: Any, options: RecordOptions) -> list[str]:
    """Return the columns with conversations, or all if there are none; empty for texts."""
    if options.rows == "text":
        return []
    return [name for name in schema.names if name in COLUMNS] or list(schema.names)


def _chat_rows(batches: Iterator[Any], origin: str, options: RecordOptions) -> Iterator[Document]:
    row = 0
    for batch in batches:
        batch.validate(full=True)  # if its sizes are wrong, reading it aborts the process
        for index in range(batch.num_rows):
            yield from options.attempt(
                partial(_conversation, batch.slice(index, 1), f"{origin}[{row}]", options)
            )
            row += 1


def _conversation(row: Any, place: str, options: RecordOptions) -> Document:
    return chat_document(row.to_pylist()[0], place, options)


def _text_path(pa: Any, schema: Any, origin: str, options: RecordOptions) -> tuple[str, ...]:
    """Return the path of the text: the column's name, then the names of fields inside structs.

    `meta.content` is `content` in the struct `meta`, if no column has the whole name. Raises
    DataError.
    """
    outer, _, inner = options.text_field.partition(".")
    if inner and options.text_field not in schema.names and outer in schema.names:
        kind = schema.field(outer).type
        if pa.types.is_struct(kind):
            held = pa.schema([kind.field(index) for index in range(kind.num_fields)])
            options = replace(options, text_field=inner)
            return (outer, *_text_path(pa, held, f"{origin}: {outer}", options))
    require_field(schema.names, origin, options)
    kind = schema.field(options.text_field).type
    if not _is_text(pa, kind):
        message = f"{origin}: column {options.text_field!r} is {kind}, not text"
        texts = [field.name for field in schema if _is_text(pa, field.type)]
        there = f"of text there is: {', '.join(texts[:20])}" if texts else "no column is text"
        raise DataError(message, hint=f"--text-field NAME; {there}")
    return (options.text_field,)


def _is_text(pa: Any, kind: Any) -> bool:
    """Return whether values are text, or bytes that may be UTF-8."""
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return str(held) in names


def _rows_in_batch(metadata: Any, file_bytes: int, origin: str) -> int:
    """Return the number of rows that take a few megabytes. Raises DataError for a bomb.

    Metadata of single columns is not read: the library aborts the process if it is damaged.
    """
    longest_bytes = 1.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.total_byte_size > max(_GROUP_BYTES, _GROUP_RATIO * file_bytes):
            raise DataError(
                f"{origin} has {format_bytes(file_bytes)} and a row group that unpacks to "
                f"{format_bytes(group.total_byte_size)}, as no text does"
            )
        longest_bytes = max(longest_bytes, group.total_byte_size / max(1, group.num_rows))
    return max(1, min(_MOST_ROWS, int(_BATCH_BYTES / longest_bytes)))


def _documents(
    columns: Iterator[Any], inside: tuple[str, ...], origin: str, options: RecordOptions
) -> Iterator[Document]:
    row = 0
    for column in columns:
        column.validate(full=True)  # if its sizes are wrong, reading it aborts the process
        for cell in column:
            yield from options.attempt(
                partial(_document, cell, inside, f"{origin}[{row}]", options)
            )
            row += 1


def _document(cell: Any, inside: tuple[str, ...], place: str, options: RecordOptions) -> Document:
    value = cell.as_py()
    for name in inside:
        value = None if value is None else value[name]
    if isinstance(value, bytes):
        value = decoded(value, place, 0)
    return document(value, place, options)
