"""Incremental encoding and decoding of texts too large for memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llmtrain.tokenizer.byte_unicode import bytes_of, is_byte_name, spelled_bytes
from llmtrain.tokenizer.escape import ESCAPE
from llmtrain.tokenizer.piece import Piece
from llmtrain.tokenizer.tokenizer import Tokenizer

_PART_CHARACTERS = 1 << 20
_LONGEST_CHARACTERS = 1 << 24
_PART_IDS = 1 << 18
_LONGEST_IDS = 1 << 22
_WINDOW_IDS = 48  # decoded for each new id, at most
_KEPT_IDS = 16  # of them
_INCOMPLETE = 3  # bytes of a character of four


def encoded_parts(tokenizer: Tokenizer, blocks: Iterable[str]) -> Iterator[list[int]]:
    """Encode blocks of text in parts; the ids equal those of the whole text.

    Parts have about a million characters and end between two words. If 16 million characters have
    no such place, the part ends at a line end or at the last character, and the ids there may
    differ from those of the whole text. If the tokenizer puts a space before each text, the whole
    text is one part.
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
    """Yield the ids of a text of any length, in parts as in `encoded_parts`."""
    if len(text) <= _PART_CHARACTERS:
        yield tokenizer.encode(text)
        return
    starts = range(0, len(text), _PART_CHARACTERS)
    yield from encoded_parts(tokenizer, (text[at : at + _PART_CHARACTERS] for at in starts))


def decoded_parts(tokenizer: Tokenizer, batches: Iterable[Sequence[int]]) -> Iterator[str]:
    """Decode batches of ids in parts; the text equals that of all ids.

    Parts have at least 262,144 ids where possible and end before an id that begins a character. If
    4 million ids have no such place, a character at the end of the part may be split.
    """
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


class IncrementalDecoder:
    """The text of ids that arrive one at a time, in whole characters.

    The parts together are the text of all ids. Only the last few ids are decoded for each new one.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int] = ()) -> None:
        """Begin after `ids`, whose text is shown already, in whole characters."""
        self._tokenizer = tokenizer
        self._ids = list(ids)
        self._start = self._last_start(0)  # the ids before it do not change what follows
        self._shown = whole_characters(tokenizer.decode(self._ids[self._start :]))

    def add(self, token: int) -> str:
        """Return the text that `token` completes; "" within a character."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids[self._start :])
        whole = whole_characters(text)
        new = whole[len(self._shown) :]
        if new:
            self._shown = whole
            if len(self._ids) - self._start > _WINDOW_IDS:
                self._move()
        return new

    def finish(self) -> str:
        """Return the text of an incomplete character at the end."""
        return self._tokenizer.decode(self._ids[self._start :])[len(self._shown) :]

    def _move(self) -> None:
        """Decode from a later id on."""
        start = self._last_start(self._start)
        unshown = len(self._tokenizer.decode(self._ids[self._start :])) - len(self._shown)
        self._ids, self._start = self._ids[start:], 0
        text = self._tokenizer.decode(self._ids)
        self._shown = text[: len(text) - unshown]

    def _last_start(self, least: int) -> int:
        """Return the last position from `least` on, some ids before the end, that text begins at.

        Ids are not cut before one that continues a character, or may be in an escape code.
        """
        for position in range(len(self._ids) - _KEPT_IDS, least, -1):
            first = self._tokenizer.spell(self._ids[position])[:1]
            if first and first[0] & 0xC0 != 0x80 and first not in (b"0", b"1"):
                return position
        return least


def whole_characters(text: str) -> str:
    """Return the decoded text without its end if the next id may make that another character."""
    whole = text.rstrip("\ufffd")
    if len(text) - len(whole) > _INCOMPLETE:
        whole = text[:-_INCOMPLETE]
    return whole.removesuffix(ESCAPE)


def joins(tokenizer: Tokenizer) -> bool:
    """Return whether the parts of a text cut between words have the ids of the whole."""
    return tokenizer.encode("one two") == tokenizer.encode("one") + tokenizer.encode(" two")


def _begins(piece: Piece) -> bool:
    """Return whether ids can be split before this piece.

    They cannot if the piece continues a UTF-8 character, or may be the second half of an escape
    code, which is a digit 0 or 1.
    """
    if piece.kind != "byte":
        return piece.kind == "text" and not piece.text.startswith(("0", "1"))
    first = (spelled_bytes if is_byte_name(piece.text) else bytes_of)(piece.text)[0]
    return first & 0xC0 != 0x80 and first not in b"01"


def _last_cut(text: str) -> int:
    """Return the last index at which `text` can be cut without changing ids; 0 if there is none.

    That is before a space between two letters: no piece and no pre-tokenization pattern spans
    these three characters. A text of 16 million characters is cut after a line end, or at its end.
    """
    end = len(text) - 1
    while (end := text.rfind(" ", 1, end)) > 0:
        if text[end - 1].isalpha() and text[end + 1].isalpha():
            return end
    if len(text) < _LONGEST_CHARACTERS:
        return 0
    return text.rfind("\n") + 1 or len(text)
