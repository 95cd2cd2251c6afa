"""A vocabulary entry, and the names of special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SEPARATOR = "<|endoftext|>"
UNKNOWN = "<unk>"

# No text encodes to a control token: the separator is one, the others are reserved for later use.
PieceKind = Literal["text", "byte", "separator", "control", "unknown"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A vocabulary entry as the model spells it: a space is "▁", a byte is "<0x0A>"."""

    text: str
    score: float  # higher: merged earlier (BPE) or likelier (unigram); text pieces only
    kind: PieceKind


def reserved_names(count: int) -> list[str]:
    """Return the names of control tokens reserved for later use, as chat roles or tool calls."""
    return [f"<|reserved_{number}|>" for number in range(count)]
