"""How many pieces a vocabulary should have: by the size of the model and by the text there is.

1. The model. The best vocabulary of a model with N parameters beside its embeddings grows more
   slowly than the model: parameters of the embedding go with N^0.83 (Tao et al. 2024, "Scaling
   laws with vocabulary"), and its width with about N^(1/3), so that pieces go with √N. Their
   43,000 pieces for 3 billion parameters fix the factor; for 70 billion it then says 208,000, and
   they say 216,000.

2. The text. A piece whose embedding is seldom trained is a wasted row: nearly all pieces should be
   seen 100 times (Gowda and May 2020). With frequencies as Zipf's law has them, the rarest of V
   pieces is seen T / (V ln V) times in T tokens.

The smaller of the two is taken, in steps of 64.
"""

from __future__ import annotations

import math

from llmtrain.choice import Choice
from llmtrain.units import format_bytes, format_count

_PIECES_PER_ROOT = 43_000 / math.sqrt(3e9)
_TIMES_SEEN = 100
_BYTES_PER_TOKEN = 4
_STEP = 64
_FEWEST = 512
_MOST_BY_TEXT = 32_000  # what most models of unknown size have
_MOST = 256_000


def vocabulary_size(text_bytes: int, parameters: int | None) -> Choice[int]:
    """Pieces for a text of so many bytes and a model of so many parameters beside its embeddings.

    None: of unknown size.
    """
    by_text = _by_text(text_bytes)
    text = f"{format_bytes(text_bytes)} of text, in which the rarest piece is seen 100 times"
    if parameters is None:
        return Choice(min(by_text, _MOST_BY_TEXT), f"{text}; --parameters says more")
    by_model = _rounded(_PIECES_PER_ROOT * math.sqrt(parameters))
    if by_text < by_model:
        return Choice(by_text, f"{text}; the model could use {by_model}")
    return Choice(by_model, f"0.79 √N of {format_count(parameters)} parameters (Tao et al. 2024)")


def _by_text(text_bytes: int) -> int:
    """The largest V with V ln V · 100 ≤ tokens."""
    tokens = text_bytes / _BYTES_PER_TOKEN
    low, high = 2.0, float(_MOST)
    for _ in range(40):  # halves the distance each time
        middle = (low + high) / 2
        if middle * math.log(middle) * _TIMES_SEEN <= tokens:
            low = middle
        else:
            high = middle
    return _rounded(low)


def _rounded(pieces: float) -> int:
    return min(max(int(pieces) // _STEP * _STEP, _FEWEST), _MOST)
