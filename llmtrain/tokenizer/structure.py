"""Validation and editing of serialized sentencepiece models, without the library.

Models are validated before the library parses them: only field numbers and lengths are checked.
See sentencepiece_model.proto and https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmtrain.errors import DataError
from llmtrain.magic import other_content

_PIECES, _TRAINER, _NORMALIZER, _SELF_TEST, _DENORMALIZER = 1, 2, 3, 4, 5
_BYTES = 2  # the wire type of everything at the top level
_MODEL_TYPE, _DUMMY_PREFIX, _EXTRA_SPACES = 3, 3, 4  # one of the trainer, two of the normalizer
_CHARACTER_MAP = 2  # of the normalizer: a compiled table
_PIECE_TEXT, _PIECE_KIND, _CONTROL, _USER_DEFINED = 1, 3, 3, 4  # of a piece
MOST_PIECES = 1 << 20
_LONGEST_PIECE_BYTES = 1024
_LONGEST_SETTINGS_BYTES = 1 << 16
_LONGEST_VARINT = 10
_HEAD_BYTES = 512


def require_sound(model: bytes) -> None:
    """Raise DataError unless `model` has only short pieces and settings, and no compiled tables.

    The values of the settings are not checked.
    """
    what = other_content(model[:_HEAD_BYTES])
    if what is not None:
        raise DataError(f"it is {what}")
    pieces = 0
    for field, wire_type, start, end in _fields(model, 0, len(model)):
        if wire_type != _BYTES or not _PIECES <= field <= _DENORMALIZER:
            raise DataError("it is not a sentencepiece model")
        if field == _PIECES:
            pieces += 1
        if field in (_NORMALIZER, _DENORMALIZER) and _has_table(model, start, end):
            raise DataError("it does not keep text exactly: it has a table of replacements")
        longest = _LONGEST_PIECE_BYTES if field == _PIECES else _LONGEST_SETTINGS_BYTES
        if end - start > longest:
            raise DataError(f"it has {end - start} bytes where {longest} are the most")
    if not 0 < pieces <= MOST_PIECES:
        raise DataError(f"it has {pieces} pieces, and {MOST_PIECES} are the most")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a model that affect how text is encoded."""

    adds_dummy_prefix: bool  # a space before each text
    removes_extra_spaces: bool
    whole_pieces: tuple[str, ...] = ()  # matched in a text before all other pieces
    is_unigram: bool = False


def read_settings(model: bytes) -> Settings:
    """Return the settings of a valid model, with sentencepiece's defaults for absent fields."""
    return Settings(
        is_unigram=_number(model, _TRAINER, _MODEL_TYPE, default=1) == 1,
        adds_dummy_prefix=bool(_number(model, _NORMALIZER, _DUMMY_PREFIX, default=1)),
        removes_extra_spaces=bool(_number(model, _NORMALIZER, _EXTRA_SPACES, default=1)),
        whole_pieces=tuple(_whole_pieces(model)),
    )


def _whole_pieces(model: bytes) -> Iterator[str]:
    for field, _, start, end in _fields(model, 0, len(model)):
        if field != _PIECES:
            continue
        places = {inner: (first, after) for inner, _, first, after in _fields(model, start, end)}
        if _PIECE_KIND in places and _varint(model, *places[_PIECE_KIND])[0] == _USER_DEFINED:
            first, after = places.get(_PIECE_TEXT, (0, 0))
            yield model[first:after].decode(errors="replace")


def _number(model: bytes, section: int, number: int, *, default: int) -> int:
    """Return the integer in a field of a section; the last one if there are several."""
    for field, _, start, end in _fields(model, 0, len(model)):
        if field == section:
            for inner, wire_type, first, after in _fields(model, start, end):
                if inner == number and wire_type == 0:
                    default, _ = _varint(model, first, after)
    return default


def _has_table(model: bytes, start: int, end: int) -> bool:
    return any(
        field == _CHARACTER_MAP and after > first
        for field, _, first, after in _fields(model, start, end)
    )


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield field number, wire type, and start and end of the contents of each field in a range.

    Raises DataError if the range is truncated or has an unknown wire type.
    """
    while start < end:
        key, start = _varint(data, start, end)
        wire_type = key & 7
        after = start
        if wire_type == 0:
            _, after = _varint(data, start, end)
        elif wire_type == _BYTES:
            length, start = _varint(data, start, end)
            after = start + length
        elif wire_type in (1, 5):
            after = start + (8 if wire_type == 1 else 4)
        else:
            raise DataError("it is not a sentencepiece model")
        if after > end:
            raise DataError("it is cut off")
        yield key >> 3, wire_type, start, after
        start = after


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the varint at `start`, and the offset after it. Raises DataError if truncated."""
    if start < end and data[start] < 0x80:  # the usual case: one byte
        return data[start], start + 1
    value = 0
    for offset, byte in enumerate(data[start : min(end, start + _LONGEST_VARINT)]):
        value |= (byte & 0x7F) << 7 * offset
        if byte < 0x80:
            return value, start + offset + 1
    raise DataError("it is cut off")


def with_control_piece(model: bytes, name: str) -> bytes:
    """Return `model` with a control piece added after the other pieces.

    Appending suffices: protobuf parsers concatenate the repeated fields of appended messages.
    """
    piece = _field(_PIECE_TEXT, name.encode()) + bytes([_PIECE_KIND << 3, _CONTROL])
    return model + _field(_PIECES, piece)


def with_pieces_respelt(model: bytes, old: bytes, new: bytes) -> bytes:
    """Return `model` with each `old` in the texts of pieces replaced by `new`."""
    parts = []
    for field, _, start, end in _fields(model, 0, len(model)):
        content = model[start:end]
        if field == _PIECES and old in content:
            content = b"".join(
                _field(inner, content[first:after].replace(old, new))
                if inner == _PIECE_TEXT
                else bytes([inner << 3 | wire_type]) + content[first:after]
                for inner, wire_type, first, after in _fields(content, 0, len(content))
            )
        parts.append(_field(field, content))
    return b"".join(parts)


def _field(number: int, content: bytes) -> bytes:
    """Return a serialized length-delimited field."""
    length, rest = [], len(content)
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([number << 3 | _BYTES, *length, rest]) + content
