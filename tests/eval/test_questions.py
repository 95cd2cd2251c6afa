"""Short answers that are compared, and the interval of their share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmtrain.data.chat.marks import Marks
from llmtrain.eval.questions import (
    SHORT_TOKENS,
    Question,
    count_exact,
    share_interval,
    short_questions,
)

MARKS = Marks(1000)


def values(*turns: tuple[int, bool]) -> np.ndarray:
    ids, spoken = list[int](), list[bool]()
    for length, is_assistant in turns:
        ids += range(len(ids), len(ids) + length)
        spoken += [is_assistant] * length
    return np.array(MARKS.mark(ids, spoken))


def test_the_first_answer_is_asked_for_where_it_is_short() -> None:
    conversations = [
        (0, values((2, False), (3, True), (1, False), (1, True))),
        (0, values((2, False), (SHORT_TOKENS + 1, True))),
        (0, values((2, False), (SHORT_TOKENS, True))),
        (0, values((3, True))),
        (0, values((3, False))),
    ]
    found = list(short_questions(conversations, MARKS))
    assert found[0] == Question([0, 1], [2, 3, 4])
    assert [len(question.answer) for question in found] == [3, SHORT_TOKENS]


def test_spaces_around_an_answer_do_not_count() -> None:
    questions = [Question([0], [1]), Question([0], [2]), Question([0], [3])]
    said = {1: " a\n", 2: "b", 3: "A"}
    matches = count_exact(questions, lambda q: said[q.answer[0]], lambda ids: "ab a"[ids[0] - 1])
    assert (matches.questions, matches.exact) == (3, 2)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_the_interval_is_wilsons(count: int, total: int, low: float, high: float) -> None:
    assert share_interval(count, total) == pytest.approx((count / total, low, high), abs=1e-4)


def test_no_questions_have_no_share() -> None:
    assert all(math.isnan(each) for each in share_interval(0, 0))
