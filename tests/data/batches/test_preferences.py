"""Windows of pairs: every pair is whole, in one window, with what the first model gives to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batches.conversations import END
from llmtrain.data.batches.mixture import TokenRange
from llmtrain.data.batches.packing import IGNORED
from llmtrain.data.batches.preferences import (
    PreferenceReader,
    References,
    pack_preferences,
)
from llmtrain.data.chat.marks import Marks
from llmtrain.errors import DataError
from tests.tokens import Ids

MARKS = Marks(5000)
Pair = tuple[int, int, int]  # tokens of the prompt, of the chosen and of the rejected answer


def stream(pairs: list[Pair]) -> tuple[Ids, list[int]]:
    """A stream of pairs whose tokens count up, and where each begins."""
    values, starts, token = [MARKS.separator], [], 0
    for prompt, chosen, rejected in pairs:
        starts.append(len(values))
        for at, answer in enumerate((chosen, rejected)):
            values += [MARKS.divider] * at
            for length, spoken in ((prompt, False), (answer, True)):
                for _ in range(length):
                    values += MARKS.mark([token], [spoken])
                    token += 1
        values.append(MARKS.separator)
    return Ids(np.array(values)), starts


def references(starts: list[int]) -> References:
    return References(np.array(starts), np.array([[-s - 0.25, -s - 0.5] for s in starts]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20
    ),
    st.integers(0, 3),
)
def test_every_pair_that_fits_is_once_in_an_epoch(pairs: list[Pair], seed: int) -> None:
    context = 24
    tokens, starts = stream(pairs)
    fitting = [2 * prompt + chosen + rejected <= context for prompt, chosen, rejected in pairs]
    if not any(fitting):
        with pytest.raises(DataError, match="none of"):
            pack_preferences(tokens, MARKS, context)
        return
    packed = pack_preferences(tokens, MARKS, context)
    assert packed.left_out == fitting.count(False)
    assert (packed.describe(context) is None) == all(fitting)
    known = references(starts)
    reader = PreferenceReader(tokens, packed, MARKS, context, seed, known)
    inputs, targets, given_log_probabilities = reader.read(0, reader.num_windows)
    assert reader.count_targets(0, reader.num_windows) == sum(fitting)
    assert (targets == END).sum() == 2 * sum(fitting)
    found = []
    for row in range(reader.num_windows):
        begin = 0
        for number, end in enumerate(np.flatnonzero(targets[row] == END).tolist()):
            own = slice(begin, end + 1)
            found.append((inputs[row, own].tolist(), targets[row, own].tolist()))
            log_probability = given_log_probabilities[row, end]
            assert log_probability % 1 == (0.75 if number % 2 == 0 else 0.5)  # chosen, rejected
            assert not given_log_probabilities[row, begin:end].any()
            begin = end + 1
        assert (targets[row, begin:] == IGNORED).all()
    expected = []
    for start, fits, (prompt, chosen, rejected) in zip(starts, fitting, pairs, strict=True):
        at = start
        for answer in (chosen, rejected) if fits else ():
            ids = MARKS.ids(tokens.read(at, prompt + answer)).tolist()
            expected.append((ids, [IGNORED] * (prompt - 1) + ids[prompt:] + [END]))
            at += prompt + answer + 1
    assert sorted(found) == sorted(expected)


def test_references_follow_a_part_of_the_stream() -> None:
    tokens, starts = stream([(1, 2, 3), (2, 2, 2), (1, 1, 1)])
    first = starts[1] - 1  # its separator
    part = TokenRange(tokens, first, tokens.num_tokens - first)
    packed = pack_preferences(part, MARKS, 24)
    known = references(starts).after(first)
    reader = PreferenceReader(part, packed, MARKS, 24, 0, known)
    found = reader.read(0, reader.num_windows)[2]
    assert set(found[found != 0].tolist()) == {
        value for start in starts[1:] for value in (-start - 0.25, -start - 0.5)
    }


def test_a_position_alone_says_what_is_read() -> None:
    tokens, starts = stream([(1, n % 5 + 1, 2) for n in range(30)])
    packed = pack_preferences(tokens, MARKS, 16)
    reader = PreferenceReader(tokens, packed, MARKS, 16, 3, references(starts))
    whole = reader.read(2, 5)
    for row in range(5):
        for one, other in zip(reader.read(2 + row, 1), whole, strict=True):
            assert (one[0] == other[row]).all()
