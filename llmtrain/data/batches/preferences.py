"""Windows of whole pairs: the chosen answer with its prompt, then the rejected one with its own.

Each is a conversation, as in `llmtrain.data.batches.conversations`: its last target is END, and no
token attends to the other one. Both are in the same window, so that a pair's loss needs no other; a
pair that is longer than the context is left out. Nothing is cut.

A third array has, at the last token of each conversation, the log-probability that the model which
training began with gives to its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmtrain.data.batches.conversations import END, read_conversations
from llmtrain.data.batches.packing import IGNORED, Packing, best_fit, packing_of
from llmtrain.data.batches.permutation import permuted_index
from llmtrain.data.batches.windows import Tokens
from llmtrain.data.chat.marks import Marks
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.errors import DataError

PreferenceWindows = tuple[TokenArray, TokenArray, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class PackedPreferences:
    """Pairs in windows."""

    packing: Packing
    pairs: int  # in all, with those left out
    left_out: int  # longer than the context

    def describe(self, context: int) -> str | None:
        """Return what was left out; None if nothing was."""
        if not self.left_out:
            return None
        return (
            f"of {self.pairs} pairs {self.left_out} are left out, whose two answers with their "
            f"prompts have more than {context} tokens together"
        )


@dataclass(frozen=True, slots=True)
class References:
    """Log-probabilities of both answers of each pair by the first model, by the pair's place."""

    starts: npt.NDArray[np.int64]  # ascending
    log_probabilities: npt.NDArray[np.float64]  # (pairs, 2): chosen and rejected

    def after(self, first_token: int) -> References:
        """Return them by places that are counted from `first_token`."""
        return References(self.starts - first_token, self.log_probabilities)

    def of(self, start: int) -> npt.NDArray[np.float64]:
        """Return those of the pair that begins at `start`."""
        index = int(np.searchsorted(self.starts, start))
        assert index < len(self.starts), "every packed pair has references"
        assert self.starts[index] == start, "every packed pair has references"
        found: npt.NDArray[np.float64] = self.log_probabilities[index]
        return found


def pack_preferences(
    stream: Tokens,
    marks: Marks,
    context: int,
    *,
    check_stop: Callable[[], None] = lambda: None,
) -> PackedPreferences:
    """Return the packing of a stream of pairs. Reads all of it.

    Raises DataError if no pair fits into the context.
    """
    starts, lengths, shortest, read = [], [], 0, 0
    for first, values in read_conversations(stream, marks, check_stop):
        read += 1
        length = len(values) - 1  # without the divider
        shortest = min(shortest or length, length)
        if length <= context:
            starts.append(first)
            lengths.append(length)
    if not starts:
        raise DataError(
            f"none of {read} pairs fits into the context of {context} tokens: the shortest has "
            f"{shortest}, both answers with their prompts together",
            hint="--set model.context=N, where the model allows a longer one",
        )
    window_of = best_fit(np.array(lengths), context)
    packing = packing_of(np.array(starts), np.array(lengths) + 1, window_of)
    return PackedPreferences(packing, read, read - len(starts))


def both_answers(values: TokenArray, marks: Marks) -> tuple[TokenArray, ...]:
    """Return the values before and after the divider; only all of them where there is none."""
    found = np.flatnonzero(values == marks.divider)
    return (values[: found[0]], values[found[0] + 1 :]) if len(found) else (values,)


class PreferenceReader:
    """Windows of pairs in permuted order, determined by the position alone.

    `count_targets` counts pairs: the loss is that of a pair.
    """

    def __init__(
        self,
        stream: Tokens,
        packed: PackedPreferences,
        marks: Marks,
        context: int,
        seed: int,
        references: References | None = None,
    ) -> None:
        """Without `references` those in the windows are 0."""
        self._stream = stream
        self._packing = packed.packing
        self._marks = marks
        self._context = context
        self._seed = seed
        self._references = references
        self.num_windows = packed.packing.num_windows

    def read(self, first_position: int, count: int) -> PreferenceWindows:
        """Return inputs, targets and references of `count` windows, each (count, context)."""
        positions = range(first_position, first_position + count)
        return self.read_windows([self._window(position) for position in positions])

    def read_windows(self, windows: Sequence[int]) -> PreferenceWindows:
        """Return the arrays of these windows, by their numbers in the packing."""
        inputs = np.zeros((len(windows), self._context), dtype=np.int64)  # padding: any token
        targets = np.full_like(inputs, IGNORED)
        references = np.zeros(inputs.shape, dtype=np.float64)
        for row, window in enumerate(windows):
            filled = 0
            for start, length in self._packing.chunks_of(window):
                values = self._stream.read(start, length)
                known = (0.0, 0.0) if self._references is None else self._references.of(start)
                answers = both_answers(values, self._marks)
                for answer, reference in zip(answers, known, strict=True):
                    ids, end = self._marks.ids(answer), filled + len(answer)
                    inputs[row, filled:end] = ids
                    counted = np.where(self._marks.is_assistant(answer), ids, IGNORED)
                    targets[row, filled:end] = np.append(counted[1:], END)
                    references[row, end - 1] = reference
                    filled = end
        return inputs, targets, references

    def place(self, position: int) -> str:
        """Return a description, for messages, of where in the data the window at `position` is."""
        starts = self.pairs_of(self._window(position))
        what = "1 pair" if len(starts) == 1 else f"{len(starts)} pairs"
        return f"{what}, the first from token {starts[0]} of the training data on"

    def count_targets(self, first_position: int, count: int) -> int:
        """Return the number of pairs in that many windows."""
        positions = range(first_position, first_position + count)
        return sum(len(self.pairs_of(self._window(position))) for position in positions)

    def pairs_of(self, window: int) -> list[int]:
        """Return where the pairs of a window begin in the stream."""
        return [start for start, _ in self._packing.chunks_of(window)]

    def _window(self, position: int) -> int:
        return permuted_index(position, self.num_windows, self._seed)[1]
