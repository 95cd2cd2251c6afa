"""Texts in JSON: an object a line, or an array, or objects one after the other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from llmtrain.data.document import Document, NoRecordsError, RecordOptions
from llmtrain.data.formats.records import RepeatingRecord, document_of
from llmtrain.data.formats.streams import how_to_leave_out
from llmtrain.data.formats.text import BOM, decoded, lines_of, not_utf8
from llmtrain.errors import DataError
from llmtrain.units import format_bytes

_READ_BYTES = 1 << 20
_WHITESPACE = " \t\n\r"
# If the decoder fails nearer to the end than this, the value may only be incomplete.
_LONGEST_PIECE = 16
_LONGEST_INTEGER = 20  # digits


def _record(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the object; a RepeatingRecord if it names a field twice."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = Counter(name for name, _ in pairs)
    return RepeatingRecord(found, frozenset(name for name, times in names.items() if times > 1))


def _integer(digits: str) -> float:
    """Return the number, for messages; a float if it has too many digits for Python's `int`."""
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_record, parse_int=_integer)


def json_lines(stream: BinaryIO, origin: str, options: RecordOptions) -> Iterator[Document]:
    """Yield a document for every line that is not empty: an object or a string.

    `file:line` is its origin.
    """
    offset = 0
    for number, line in enumerate(lines_of(stream, origin, options.longest_bytes), start=1):
        content = line.removeprefix(BOM) if number == 1 else line
        if content.strip():
            first_byte = offset + len(line) - len(content)
            yield from options.attempt(
                partial(_line, content, f"{origin}:{number}", first_byte, options)
            )
        offset += len(line)


def _line(content: bytes, place: str, first_byte: int, options: RecordOptions) -> Document:
    text = decoded(content, place, first_byte)
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}") from error
    return document_of(value, place, options)


def json_values(stream: BinaryIO, origin: str, options: RecordOptions) -> Iterator[Document]:
    """Yield a document for every element of an array (object or string) or for every object.

    `file[index]` is its origin. One element is in memory at a time, and not the file.
    """
    values = _top_values(_Window(stream, origin, options.longest_bytes))
    for index, value in enumerate(values):
        yield from options.attempt(partial(document_of, value, f"{origin}[{index}]", options))


def _top_values(window: _Window) -> Iterator[object]:
    if window.take("["):
        if not window.take("]"):
            yield window.value()
            while window.take(","):
                yield window.value()
            window.require("]")
        window.require("")
        return
    while window.next_character():
        yield window.value()


class _Window:
    """The part of a JSON text in memory: the current value, and what was read along with it."""

    def __init__(self, stream: BinaryIO, origin: str, longest_bytes: int) -> None:
        self._stream = stream
        self._origin = origin
        self._longest_bytes = longest_bytes
        self._text, self._at = "", 0
        self._before_bytes = 0  # in the file, before `_text`
        self._undecoded = b""  # the first bytes of a character
        self._values = 0
        while not self._text and self._refill():
            pass
        self._at = int(self._text.startswith("\ufeff"))

    def next_character(self) -> str:
        """Skip white space; return the next character, or nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _WHITESPACE:
                self._at += 1
            if self._at < len(self._text) or not self._refill():
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> bool:
        """Skip `character` if it is next; return whether it was."""
        found = self.next_character() == character
        self._at += found
        return found

    def require(self, character: str) -> None:
        """Skip `character`; if it is empty, require the end of the text. Raises DataError."""
        if self.next_character() != character:
            raise self._failure(f"no {character or 'end'!r} after the last value", self._at)
        self._at += len(character)

    def value(self) -> object:
        """Return the next object, array or string. Raises DataError."""
        first = self.next_character()
        if first and first not in '{["':
            raise self._failure("neither an object nor a string", self._at)
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                failure = self._failure(error.msg, error.pos)
                if not (self._may_be_cut(error) and self._refill()):
                    raise failure from error
            except (ValueError, RecursionError) as error:
                raise self._failure(str(error), self._at) from error
            else:
                self._at = end
                self._values += 1
                return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        near_end = error.pos >= len(self._text) - _LONGEST_PIECE
        return near_end or error.msg.startswith("Unterminated string")

    def _refill(self) -> bool:
        """Read at least as much again as is unread; return whether there was more."""
        passed = self._text[: self._at]
        self._before_bytes += len(passed.encode())
        self._text, self._at = self._text[self._at :], 0
        size = len(self._text)
        if size > self._longest_bytes:
            raise self._failure(f"a value is longer than {format_bytes(self._longest_bytes)}", 0)
        data = self._undecoded + self._stream.read(max(size, _READ_BYTES))
        is_end = len(data) == len(self._undecoded)
        try:
            more = data.decode()
            self._undecoded = b""
        except UnicodeDecodeError as error:
            if is_end or error.end < len(data) or error.reason != "unexpected end of data":
                offset = self._before_bytes + len(self._text.encode()) + error.start
                raise not_utf8(self._origin, data[error.start], offset) from error
            more, self._undecoded = data[: error.start].decode(), data[error.start :]
        self._text += more
        return not is_end

    def _failure(self, said: str, position: int) -> DataError:
        offset = self._before_bytes + len(self._text[:position].encode())
        said = said.removesuffix(" at").removesuffix(" starting")
        message = f"{self._origin} is not JSON at byte {offset}: {said}"
        hint = how_to_leave_out(self._origin)
        if self._values:
            return DataError(message, hint=hint)
        return NoRecordsError(message, reason="no JSON of objects or strings", hint=hint)
