"""The text field of a record, and the error if it is missing, for every format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from llmtrain.data.chat.preferences import preference_text, row_kind
from llmtrain.data.chat.rows import COLUMNS, conversation_text
from llmtrain.data.document import Document, NoRecordsError, RecordOptions
from llmtrain.errors import DataError
from llmtrain.units import format_bytes

_MEND = "mend that record, or take it out; nothing is left out silently"
_MOST_NAMES = 20
_MOST_CHARACTERS = 40


class RepeatingRecord(dict[str, object]):
    """A record that repeats some field names; it holds the last value of each."""

    def __init__(self, values: dict[str, object], repeated: frozenset[str]) -> None:
        super().__init__(values)
        self.repeated = repeated


def document_of(record: object, place: str, options: RecordOptions) -> Document:
    """Return the document in the text field of a record, or the string that the record is.

    Raises DataError if it cannot be used. `meta.content` is the field `content` of the object in
    field `meta`, if there is no field of the whole name.
    """
    if options.rows != "text":
        return chat_document(record, place, options)
    if isinstance(record, str):
        return document(record, place, options)
    if not isinstance(record, dict):
        message = f"{place} is JSON, but not an object: {json_beginning(record)}"
        raise NoRecordsError(message, reason="no objects")
    name = options.text_field
    outer, dot, inner = name.partition(".")
    if name not in record and dot and isinstance(part := record.get(outer), dict):
        _refuse_repeated(record, outer, place)
        found = document_of(part, f"{place}: {outer}", replace(options, text_field=inner))
        return replace(found, origin=place)
    require_field(record, place, options)
    _refuse_repeated(record, name, place)
    return document(record[name], place, options)


def chat_document(record: object, place: str, options: RecordOptions) -> Document:
    """Return the conversation, or the pair, of a record as a document. Raises DataError."""
    if isinstance(record, RepeatingRecord) and (repeated := record.repeated & {*COLUMNS}):
        raise DataError(f"{place} has field {min(repeated)!r} more than once", hint=_MEND)
    if options.rows == "kind":
        return Document(row_kind(record), place)
    text_of = preference_text if options.rows == "preferences" else conversation_text
    return document(text_of(record, place), place, options)


def _refuse_repeated(record: dict[str, object], name: str, place: str) -> None:
    if isinstance(record, RepeatingRecord) and name in record.repeated:
        raise DataError(f"{place} has field {name!r} more than once", hint=_MEND)


def document(text: object, place: str, options: RecordOptions) -> Document:
    """Return `text` as a document. Raises DataError unless it is Unicode and not too long."""
    field = f"{place}: field {options.text_field!r}"
    if not isinstance(text, str):
        raise DataError(f"{field} is not a string: {json_beginning(text)}", hint=_MEND)
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:  # JSON can escape half of one
        raise DataError(f"{field} has half a surrogate pair at {error.start}") from error
    if size_bytes > options.longest_bytes:
        message = f"{field} is longer than {format_bytes(options.longest_bytes)}"
        raise DataError(message, hint="a text of that length can be a .txt file of its own")
    return Document(text, place)


def require_field(names: Iterable[str], place: str, options: RecordOptions) -> None:
    """Raise NoRecordsError, with the fields there are, unless `names` has the text field.

    Raises DataError if two columns have that name.
    """
    names = list(names)
    if names.count(options.text_field) > 1:
        raise DataError(f"{place} names the column {options.text_field!r} twice")
    if options.text_field in names:
        return
    there = ", ".join(repr(name[:_MOST_CHARACTERS]) for name in names[:_MOST_NAMES]) or "no fields"
    more = ", …" if len(names) > _MOST_NAMES else ""
    hint = "name the field that holds the text: --text-field NAME, or --set data.text_field=NAME"
    if len(names) == 1 and (mark := next((m for m in ";\t|" if m in names[0]), None)) is not None:
        hint = f"are its columns apart by {mark!r}? .csv has commas, .tsv has tabs"
    raise NoRecordsError(
        f"{place} has no field {options.text_field!r}; it has {there}{more}",
        reason=f"no field {options.text_field!r}",
        hint=hint,
    )


def json_beginning(value: object) -> str:
    """Return the beginning of a value as JSON, for messages."""
    return json.dumps(value)[:_MOST_CHARACTERS]
