"""A vocabulary entry, and the names of special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import AnyStr, Literal

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


def merges_of(
    order: Mapping[AnyStr, float], ids: Mapping[AnyStr, int]
) -> list[tuple[AnyStr, AnyStr]]:
    """Return every pair of pieces that concatenates to a third, by the `order` of the third."""
    ranked = sorted(
        (rank, ids[text[:cut]], ids[text[cut:]], text[:cut], text[cut:])
        for text, rank in order.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    )
    return [(left, right) for *_, left, right in ranked]


def reserved_names(count: int) -> list[str]:
    """Return the names of control tokens reserved for later use, as chat roles or tool calls."""
    return [f"<|reserved_{number}|>" for number in range(count)]
