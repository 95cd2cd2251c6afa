"""Windows of whole conversations, in which only what the assistant wrote is a target.

A conversation longer than the context ends with the last answer that fits in; one whose first
answer does not fit is left out. Nothing is ever cut within an answer, and no window begins within
a conversation. They are packed best-fit, as in `llmtrain.data.batches.packing`.

The target of a conversation's last token is END, which does not count in the loss, and to which
attention is masked: no token attends to another conversation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmtrain.data.batches.packing import IGNORED, Packing, best_fit, packing_of
from llmtrain.data.batches.permutation import permuted_index
from llmtrain.data.batches.windows import Tokens
from llmtrain.data.chat.marks import Marks
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.errors import DataError

END = -2  # the target of a conversation's last token
_PADDING = 0  # an input beyond the last conversation: any token, since none attends to it
_READ_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class PackedConversations:
    """Conversations in windows, with the number of targets in each window."""

    packing: Packing
    targets: npt.NDArray[np.int64]
    conversations: int  # in all, with those left out
    truncated: int  # end with an earlier answer than their last
    left_out: int  # have no answer that fits in

    def describe(self, context: int) -> str | None:
        """Return what was cut and left out; None if nothing was."""
        if not self.truncated and not self.left_out:
            return None
        return (
            f"of {self.conversations} conversations {self.truncated} end early, with the last "
            f"answer within {context} tokens, and {self.left_out} are left out, whose first answer "
            "is longer"
        )


def pack_conversations(
    stream: Tokens,
    marks: Marks,
    context: int,
    *,
    check_stop: Callable[[], None] = lambda: None,
) -> PackedConversations:
    """Return the packing of a stream of conversations. Reads all of it.

    Raises DataError if no conversation has an answer that fits into the context.
    """
    starts, lengths, targets, truncated = [], [], [], 0
    read = 0
    for first, values in read_conversations(stream, marks, check_stop):
        read += 1
        is_assistant = marks.is_assistant(values)
        length, is_truncated = answered_tokens(is_assistant, context)
        count = int(is_assistant[1:length].sum())
        if count:
            starts.append(first)
            lengths.append(length)
            targets.append(count)
            truncated += is_truncated
    if not starts:
        raise DataError(
            f"none of {read} conversations has an answer within the context of {context} tokens",
            hint="--set model.context=N, where the model allows a longer one",
        )
    window_of = best_fit(np.array(lengths), context)
    packing = packing_of(np.array(starts), np.array(lengths), window_of)
    in_window = np.bincount(window_of, weights=targets).astype(np.int64)
    return PackedConversations(packing, in_window, read, truncated, read - len(starts))


def read_conversations(
    stream: Tokens, marks: Marks, check_stop: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, TokenArray]]:
    """Yield where each conversation's first token is, and its values."""
    pending, offset = np.empty(0, dtype=np.int64), 0
    for start in range(0, stream.num_tokens, _READ_TOKENS):
        check_stop()
        values = stream.read(start, min(_READ_TOKENS, stream.num_tokens - start))
        pending = np.concatenate([pending, values])
        borders = np.flatnonzero(pending == marks.separator).tolist()
        for border, following in itertools.pairwise(borders):
            if following > border + 1:
                yield offset + border + 1, pending[border + 1 : following]
        last = borders[-1] if borders else 0
        pending, offset = pending[last:], offset + last


def answered_tokens(is_assistant: npt.NDArray[np.bool_], context: int) -> tuple[int, bool]:
    """Return the number of tokens up to the last answer's end in the context; whether more follow.

    It is 0 where no answer ends in the context.
    """
    ends = np.flatnonzero(is_assistant & ~np.append(is_assistant[1:], False)) + 1
    fitting = ends[ends <= context]
    length = int(fitting[-1]) if len(fitting) else 0
    return length, length > 0 and bool(is_assistant[length:].any())


class ConversationReader:
    """Windows of conversations in permuted order, determined by the position alone."""

    def __init__(
        self,
        stream: Tokens,
        packed: PackedConversations,
        marks: Marks,
        context: int,
        seed: int,
    ) -> None:
        self._stream = stream
        self._packed = packed
        self._marks = marks
        self._context = context
        self._seed = seed
        self.num_windows = packed.packing.num_windows

    def read(self, first_position: int, count: int) -> tuple[TokenArray, TokenArray]:
        """Return inputs and targets of `count` windows, each int64 of shape (count, context)."""
        inputs = np.full((count, self._context), _PADDING, dtype=np.int64)
        targets = np.full_like(inputs, IGNORED)
        for row in range(count):
            filled = 0
            window = self._window(first_position + row)
            for start, length in self._packed.packing.chunks_of(window):
                values = self._stream.read(start, length)
                ids, places = self._marks.ids(values), slice(filled, filled + length)
                inputs[row, places] = ids
                counted = np.where(self._marks.is_assistant(values), ids, IGNORED)
                targets[row, places] = np.append(counted[1:], END)
                filled += length
        return inputs, targets

    def place(self, position: int) -> str:
        """Return a description, for messages, of where in the data the window at `position` is."""
        chunks = list(self._packed.packing.chunks_of(self._window(position)))
        what = "1 conversation" if len(chunks) == 1 else f"{len(chunks)} conversations"
        return f"{what}, the first from token {chunks[0][0]} of the training data on"

    def count_targets(self, first_position: int, count: int) -> int:
        """Return the number of targets in that many windows: tokens of the assistant."""
        positions = range(first_position, first_position + count)
        return sum(int(self._packed.targets[self._window(position)]) for position in positions)

    def _window(self, position: int) -> int:
        return permuted_index(position, self.num_windows, self._seed)[1]
