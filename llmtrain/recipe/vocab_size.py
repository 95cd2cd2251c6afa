"""Rule 2: the number of pieces in a vocabulary, by the size of the model and of the text.

2.1 The model. The best vocabulary grows more slowly than N, the model's parameters without its
    embeddings: embedding parameters grow with N^0.83 (Tao et al. 2024, "Scaling Laws with
    Vocabulary"), the width with about N^(1/3), so the number of pieces with

        V = 43,000 · √(N / 3e9) = 0.79 · √N.

    Their 43,000 pieces for 3 billion parameters fix the factor; for 70 billion the rule gives
    208,000, and they give 216,000.
2.2 The text. The embedding of a piece that training rarely sees is a wasted row: nearly all pieces
    should be seen 100 times (Gowda and May 2020, "Finding the Optimal Vocabulary Size"). By Zipf's
    law the rarest of V pieces is seen T / (V · ln V) times in T tokens, so V is at most the
    solution of

        100 · V · ln V = T,    with 4 bytes a token.
2.3 The smaller of both counts, in steps of 64, from 512 to 256,000 (32,000 for unknown N, which
    most models have).
"""

from __future__ import annotations

import math

from llmtrain.choice import Choice
from llmtrain.units import format_bytes, format_count

_PIECES_PER_ROOT = 43_000 / math.sqrt(3e9)
_TIMES_SEEN = 100
_BYTES_PER_TOKEN = 4
_STEP = 64
_FEWEST, _MOST = 512, 256_000
_MOST_FOR_UNKNOWN_MODEL = 32_000


def vocabulary_size(text_bytes: int, parameters: int | None) -> Choice[int]:
    """Return the number of pieces by rule 2.

    `parameters` does not count embeddings; None: the model is unknown.
    """
    by_text = _by_text(text_bytes)
    text = f"{format_bytes(text_bytes)} of text, in which the rarest piece is seen 100 times"
    if parameters is None:
        pieces = min(by_text, _MOST_FOR_UNKNOWN_MODEL)
        return Choice(pieces, f"{text}; --parameters would consider the model")
    by_model = _rounded(_PIECES_PER_ROOT * math.sqrt(parameters))
    if by_text < by_model:
        return Choice(by_text, f"{text}; the model could use {by_model}")
    return Choice(by_model, f"0.79 √N of {format_count(parameters)} parameters (Tao et al. 2024)")


def _by_text(text_bytes: int) -> int:
    """Return the largest V with 100 · V · ln V ≤ tokens, by bisection."""
    tokens = text_bytes / _BYTES_PER_TOKEN
    low, high = 2.0, float(_MOST)
    for _ in range(40):
        middle = (low + high) / 2
        if middle * math.log(middle) * _TIMES_SEEN <= tokens:
            low = middle
        else:
            high = middle
    return _rounded(low)


def _rounded(pieces: float) -> int:
    return min(max(int(pieces) // _STEP * _STEP, _FEWEST), _MOST)
