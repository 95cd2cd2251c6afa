"""One entry of a vocabulary, and the names of those that are not text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SEPARATOR = "<|endoftext|>"
UNKNOWN = "<unk>"

# A control token is one that no text becomes: the separator is one, the others wait for a use.
PieceKind = Literal["text", "byte", "separator", "control", "unknown"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A vocabulary entry as the model spells it: a space is "▁", a byte is "<0x0A>"."""

    text: str
    score: float  # the higher, the earlier it is merged or the likelier; of text pieces only
    kind: PieceKind


def reserved_names(count: int) -> list[str]:
    """Names of control tokens that are kept for later: of a chat's roles, of tools."""
    return [f"<|reserved_{number}|>" for number in range(count)]
