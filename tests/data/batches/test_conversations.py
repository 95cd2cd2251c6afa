"""Windows of conversations: every answer counts once, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batches.conversations import (
    END,
    ConversationReader,
    pack_conversations,
    read_conversations,
)
from llmtrain.data.batches.packing import IGNORED
from llmtrain.data.chat.marks import Marks
from llmtrain.errors import DataError
from tests.tokens import Ids

MARKS = Marks(5000)
Turns = list[tuple[int, int]]  # tokens of the user and of the assistant, in turns


def stream(conversations: list[Turns]) -> tuple[Ids, list[list[int]]]:
    """A stream of conversations whose tokens count up, and the values of each."""
    values, each, token = [MARKS.separator], [], 0
    for turns in conversations:
        own: list[int] = []
        for asked, answered in turns:
            for length, spoken in ((asked, False), (answered, True)):
                for _ in range(length):
                    own += MARKS.mark([token], [spoken])
                    token += 1
        each.append(own)
        values += [*own, MARKS.separator]
    return Ids(np.array(values)), each


def test_marks_are_tokens_and_roles() -> None:
    ids, spoken = [0, 99, 5], [True, False, True]
    values = np.array(MARKS.mark(ids, spoken))
    assert MARKS.ids(values).tolist() == ids
    assert MARKS.is_assistant(values).tolist() == spoken
    assert MARKS.separator not in values
    assert MARKS.values == MARKS.separator + 1
    assert Marks.of_separator(MARKS.separator) == MARKS
    assert not MARKS.is_assistant(np.array([MARKS.separator])).any()


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4),
        min_size=1,
        max_size=12,
    ),
    st.integers(4, 24),
    st.integers(0, 3),
)
def test_each_answer_that_fits_counts_once(
    conversations: list[Turns], context: int, seed: int
) -> None:
    tokens, each = stream(conversations)
    fitting = [turns for turns in conversations if sum(turns[0]) <= context]
    if not fitting:
        with pytest.raises(DataError, match="none of"):
            pack_conversations(tokens, MARKS, context)
        return
    packed = pack_conversations(tokens, MARKS, context)
    assert packed.left_out == len(conversations) - len(fitting)
    reader = ConversationReader(tokens, packed, MARKS, context, seed)
    inputs, targets = reader.read(0, reader.num_windows)
    expected, truncated = 0, 0
    for turns in fitting:
        length = 0
        for asked, answered in turns:
            if length + asked + answered > context:
                truncated += 1
                break
            length += asked + answered
            expected += answered
    assert (targets >= 0).sum() == expected == reader.count_targets(0, reader.num_windows)
    assert packed.truncated == truncated
    assert (targets == END).sum() == len(fitting)
    _require_shifted(inputs, targets, each)


def _require_shifted(inputs: np.ndarray, targets: np.ndarray, each: list[list[int]]) -> None:
    """Each part up to an END begins a conversation; its targets are the next tokens."""
    for row, goal in zip(inputs, targets, strict=True):
        start = 0
        for end in (np.flatnonzero(goal == END) + 1).tolist():
            part = row[start:end].tolist()
            whole = next(
                values
                for values in each
                if MARKS.ids(np.array(values))[: len(part)].tolist() == part
            )
            spoken = MARKS.is_assistant(np.array(whole))[: len(part)]
            assert spoken[-1], "it ends with an answer"
            following = np.where(spoken[1:], part[1:], IGNORED).tolist()
            assert goal[start:end].tolist() == [*following, END]
            start = end
        assert (goal[start:] == IGNORED).all(), "the rest is padding"


def test_windows_are_determined_by_their_position() -> None:
    tokens, _ = stream([[(2, 3)]] * 20)
    packed = pack_conversations(tokens, MARKS, 11)
    reader = ConversationReader(tokens, packed, MARKS, 11, seed=1)
    whole = reader.read(0, 25)
    for position in range(25):
        one = reader.read(position, 1)
        assert all((a[position] == b[0]).all() for a, b in zip(whole, one, strict=True))
    assert "2 conversations" in reader.place(0)


def test_reading_in_parts_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, each = stream([[(1, 2)], [(3, 4), (1, 1)], [(2, 2)]])
    for size in (1, 3, 5, 100):
        monkeypatch.setattr("llmtrain.data.batches.conversations._READ_TOKENS", size)
        found = [(start, v.tolist()) for start, v in read_conversations(tokens, MARKS)]
        assert [values for _, values in found] == each
        assert [tokens.ids[start : start + len(v)].tolist() for start, v in found] == each


def test_what_is_cut_is_said() -> None:
    tokens, _ = stream([[(2, 2), (2, 2)], [(9, 1)], [(1, 1)]])
    packed = pack_conversations(tokens, MARKS, 6)
    assert (packed.conversations, packed.truncated, packed.left_out) == (3, 1, 1)
    said = packed.describe(6)
    assert said is not None
    assert "of 3 conversations 1 end early" in said
    assert pack_conversations(tokens, MARKS, 100).describe(100) is None
