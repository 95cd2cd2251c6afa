"""Which texts a tokenizer changes, and how: encoded, then decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal
from unicodedata import normalize

from llmtrain.tokenizer.tokenizer import Tokenizer

_FORMS: tuple[Literal["NFC", "NFKC", "NFD", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")


def describe_change(lost: Sequence[tuple[str, str]]) -> str:
    """Describe how the first text changes, and which Unicode normal form explains all, if any."""
    text, back = lost[0]
    change = f"{text!r} comes back as {back!r}"
    forms = (form for form in _FORMS if all(normalize(form, old) == new for old, new in lost))
    form = next(forms, None)
    if form is None:
        return change
    first = next(
        (number for number, (a, b) in enumerate(zip(text, back, strict=False)) if a != b),
        min(len(text), len(back)),
    )
    old, new = (
        " ".join(f"U+{ord(character):04X}" for character in part[first : first + 2])
        for part in (text, back)
    )
    return f"it normalizes to {form}, {old} to {new}: {change}"


def changed_texts(tokenizer: Tokenizer, probes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each text that does not round-trip, and the text it decodes to instead."""
    for text in probes:
        back = tokenizer.decode(tokenizer.encode(text))
        if back != text:
            yield text, back
