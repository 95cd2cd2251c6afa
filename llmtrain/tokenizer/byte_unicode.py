"""The letters in which vocabularies of bytes are spelt: one visible character a byte.

Those of GPT-2 (Radford et al. 2019), which tokenizer.json calls ByteLevel.
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
    """Each byte's letter: the Latin-1 character where it is visible, or one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(256) if byte not in visible)
    substitutes = {byte: chr(_FIRST_SUBSTITUTE + n) for n, byte in enumerate(hidden)}
    return MappingProxyType({byte: substitutes.get(byte, chr(byte)) for byte in range(256)})


@cache
def _byte_of_letter() -> MappingProxyType[str, int]:
    return MappingProxyType({letter: byte for byte, letter in letter_of_byte().items()})


def spelled_bytes(text: str) -> bytes:
    """Return the UTF-8 of a piece in which a space is "▁" and a byte is "<0x0A>"."""
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(SPACE_MARK, " ").encode()


def letters_of(data: bytes) -> str:
    """`data` in letters."""
    return "".join(map(letter_of_byte().__getitem__, data))


def bytes_of(text: str) -> bytes:
    """What `text` spells. Raises KeyError where a character is no letter of a byte."""
    return bytes(map(_byte_of_letter().__getitem__, text))
