"""Text and ids that need not be in memory at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from llmtrain.tokenizer.byte_unicode import bytes_of
from llmtrain.tokenizer.piece import Piece
from llmtrain.tokenizer.tokenizer import Tokenizer

_PART_CHARACTERS = 1 << 20
_LONGEST_CHARACTERS = 1 << 24
_PART_IDS = 1 << 18
_LONGEST_IDS = 1 << 22
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def encoded_parts(tokenizer: Tokenizer, blocks: Iterable[str]) -> Iterator[list[int]]:
    """Ids of the text that the blocks are, part by part: those of the whole.

    Parts of about a million characters end between two words. Where there is no such place in 16
    million characters, one ends at a line end or where it must, and ids there may be others than
    of the whole. A tokenizer that puts a space before each text gets it whole.
    """
    if not joins(tokenizer):
        yield tokenizer.encode("".join(blocks))
        return
    text, wanted_characters = "", _PART_CHARACTERS
    for block in blocks:
        text += block
        if len(text) < wanted_characters:
            continue
        end = _last_cut(text)
        wanted_characters = _PART_CHARACTERS if end else 2 * len(text)
        if end:
            yield tokenizer.encode(text[:end])
            text = text[end:]
    if text:
        yield tokenizer.encode(text)


def encoded_document(tokenizer: Tokenizer, text: str) -> Iterator[list[int]]:
    """Yield the ids of a text that may be long, in parts as `encoded_parts` does."""
    if len(text) <= _PART_CHARACTERS:
        yield tokenizer.encode(text)
        return
    starts = range(0, len(text), _PART_CHARACTERS)
    yield from encoded_parts(tokenizer, (text[at : at + _PART_CHARACTERS] for at in starts))


def decoded_parts(tokenizer: Tokenizer, batches: Iterable[Sequence[int]]) -> Iterator[str]:
    """The text of ids that come in batches, part by part: that of the whole."""
    if not joins(tokenizer):
        yield tokenizer.decode([token for batch in batches for token in batch])
        return
    begins_text = {token for token, piece in enumerate(tokenizer.pieces()) if _begins(piece)}
    ids: list[int] = []
    for batch in batches:
        ids.extend(batch)
        if len(ids) >= _PART_IDS:
            end = next((at for at in reversed(range(len(ids))) if ids[at] in begins_text), 0)
            end = len(ids) if not end and len(ids) >= _LONGEST_IDS else end
            yield tokenizer.decode(ids[:end])
            ids = ids[end:]
    yield tokenizer.decode(ids)


def joins(tokenizer: Tokenizer) -> bool:
    """Whether ids of text cut between words are those of the whole."""
    return tokenizer.encode("one two") == tokenizer.encode("one") + tokenizer.encode(" two")


def _begins(piece: Piece) -> bool:
    """Neither a character goes on here nor a code of an escape, which ends in a digit."""
    if piece.kind != "byte":
        return piece.kind == "text" and not piece.text.startswith(("0", "1"))
    spelt = _BYTE.fullmatch(piece.text)
    first = int(spelt[1], 16) if spelt else bytes_of(piece.text)[0]
    return first & 0xC0 != 0x80 and first not in b"01"


def _last_cut(text: str) -> int:
    """Where the last part that is whole ends; 0: there is no such place yet.

    No piece, and no pattern that splits text, goes on from a letter over a space to a letter.
    """
    end = len(text) - 1
    while (end := text.rfind(" ", 1, end)) > 0:
        if text[end - 1].isalpha() and text[end + 1].isalpha():
            return end
    if len(text) < _LONGEST_CHARACTERS:
        return 0
    return text.rfind("\n") + 1 or len(text)
