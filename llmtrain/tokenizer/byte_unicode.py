"""The byte-to-character mapping of byte-level BPE: one visible character for each byte.

It is the mapping of GPT-2 (Radford et al. 2019), named ByteLevel in tokenizer.json.
"""

from __future__ import annotations

import re
from functools import cache
from types import MappingProxyType

from llmtrain.tokenizer.escape import SPACE_MARK

_FIRST_SUBSTITUTE = 256
_BYTE = re.compile("<0x([0-9A-F]{2})>")


@cache
def letter_of_byte() -> MappingProxyType[int, str]:
    """Return each byte's character: Latin-1 where that is visible, else one from U+0100 upwards."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(256) if byte not in visible)
    substitutes = {byte: chr(_FIRST_SUBSTITUTE + n) for n, byte in enumerate(hidden)}
    return MappingProxyType({byte: substitutes.get(byte, chr(byte)) for byte in range(256)})


@cache
def _byte_of_letter() -> MappingProxyType[str, int]:
    return MappingProxyType({letter: byte for byte, letter in letter_of_byte().items()})


def is_byte_name(text: str) -> bool:
    """Return whether a piece names a byte, as "<0x0A>" does."""
    return _BYTE.fullmatch(text) is not None


def spelled_bytes(text: str) -> bytes:
    """Return the UTF-8 of a piece in which "▁" is a space and "<0x0A>" is a byte."""
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(SPACE_MARK, " ").encode()


def letters_of(data: bytes) -> str:
    """Return `data` with each byte replaced by its character."""
    return "".join(map(letter_of_byte().__getitem__, data))


def bytes_of(text: str) -> bytes:
    """Return the bytes that the characters of `text` stand for.

    Raises KeyError for a character that stands for no byte.
    """
    return bytes(map(_byte_of_letter().__getitem__, text))
