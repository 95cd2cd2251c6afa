"""Tokens that say by their value whether the assistant wrote them.

Of a vocabulary of V tokens, `t` is one of another role, `t + V` one of the assistant, and `2 V` is
what begins each conversation: no token of the vocabulary can be mistaken for it. Between the two
answers of a preference is `2 V + 1`. Shards of conversations hold such values, so that tokens and
marks cannot get out of step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmtrain.data.shards.token_stream import TokenArray


@dataclass(frozen=True, slots=True)
class Marks:
    """The values for a vocabulary of `pieces` tokens."""

    pieces: int

    @property
    def separator(self) -> int:
        """The value that begins each conversation."""
        return 2 * self.pieces

    @property
    def values(self) -> int:
        """The number of different values."""
        return 2 * self.pieces + 1

    @property
    def divider(self) -> int:
        """The value between the two conversations of a preference."""
        return 2 * self.pieces + 1

    @classmethod
    def of_separator(cls, separator: int) -> Marks:
        """Return the marks with this separator."""
        return cls(separator // 2)

    def mark(self, ids: list[int], is_assistant: list[bool]) -> list[int]:
        """Return the values of tokens."""
        both = zip(ids, is_assistant, strict=True)
        return [token + self.pieces * is_spoken for token, is_spoken in both]

    def ids(self, values: TokenArray) -> TokenArray:
        """Return the tokens of values without separators."""
        return values % self.pieces

    def is_assistant(self, values: TokenArray) -> npt.NDArray[np.bool_]:
        """Return which of the values are tokens of the assistant."""
        return (values >= self.pieces) & (values < self.separator)
