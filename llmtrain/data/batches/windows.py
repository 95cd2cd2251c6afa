"""Inputs and targets for positions of training, and for evaluation in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmtrain.data.batches.permutation import count_windows, permuted_index
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.errors import DataError

# Inputs and targets, and of pairs of answers the references: each (windows, context).
Windows = tuple[npt.NDArray[Any], ...]


class Tokens(Protocol):
    """A source of tokens for batches, such as a TokenStream."""

    num_tokens: int

    def read(self, start: int, count: int) -> TokenArray: ...


class WindowReader(Protocol):
    """A reader of windows by their position in training."""

    num_windows: int

    def read(self, first_position: int, count: int) -> Windows: ...

    def place(self, position: int) -> str: ...

    def count_targets(self, first_position: int, count: int) -> int: ...


class BatchReader:
    """Windows in permuted order, determined by the position alone: no state between calls.

    A rank's share is a range of positions. With R ranks and m windows per micro-batch, step s of
    rank r reads from s·R·m + r·m; all ranks together then read what one rank with R·m would.
    """

    def __init__(self, stream: Tokens, context: int, seed: int) -> None:
        self._stream = stream
        self._context = context
        self._seed = seed
        self.num_windows = count_windows(stream.num_tokens, context)

    def read(self, first_position: int, count: int) -> tuple[TokenArray, TokenArray]:
        """Return inputs and targets of `count` windows, each int64 of shape (count, context)."""
        inputs = np.empty((count, self._context), dtype=np.int64)
        targets = np.empty_like(inputs)
        for row in range(count):
            tokens = self._stream.read(self.first_token(first_position + row), self._context + 1)
            inputs[row], targets[row] = tokens[:-1], tokens[1:]
        return inputs, targets

    def first_token(self, position: int) -> int:
        """Return the first token of the window at `position`."""
        _, window = permuted_index(position, self.num_windows, self._seed)
        return window * self._context

    def place(self, position: int) -> str:
        """Return a description, for messages, of where in the text the window at `position` is."""
        start = self.first_token(position)
        return f"tokens {start} to {start + self._context} of the training text"

    def count_targets(self, first_position: int, count: int) -> int:
        """Return the number of targets in that many windows, which have no padding."""
        return count * self._context


def sequential_windows(stream: Tokens, context: int) -> Iterator[tuple[TokenArray, TokenArray]]:
    """Yield inputs and targets, one-dimensional, of each window in order; the last may be shorter.

    Every token but the first is a target exactly once. Raises DataError if there is no target.
    """
    last = stream.num_tokens - 1
    if last < 1:
        message = f"a split of {stream.num_tokens} tokens has nothing to predict"
        raise DataError(message, hint="add text with --data")
    starts = range(0, stream.num_tokens, context)
    return windows_of(
        (stream.read(start, min(context, stream.num_tokens - start)) for start in starts), context
    )


def windows_of(
    batches: Iterable[TokenArray], context: int
) -> Iterator[tuple[TokenArray, TokenArray]]:
    """Yield the windows of `sequential_windows` from ids that come in batches of any size."""
    pending = np.empty(0, dtype=np.int64)
    for batch in batches:
        pending = np.concatenate([pending, batch])
        while len(pending) > context:
            yield pending[:context], pending[1 : context + 1]
            pending = pending[context:]
    if len(pending) > 1:
        yield pending[:-1], pending[1:]
