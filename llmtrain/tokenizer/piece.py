"""One entry of a vocabulary, and the names of the two that are not text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SEPARATOR = "<|endoftext|>"
UNKNOWN = "<unk>"

PieceKind = Literal["text", "byte", "separator", "unknown"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A vocabulary entry as the model spells it: a space is "▁", a byte is "<0x0A>"."""

    text: str
    score: float  # the higher, the earlier it is merged; only text pieces are merged
    kind: PieceKind
