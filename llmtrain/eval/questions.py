"""Questions of conversations with short answers, and how many a model answers exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from llmtrain.data.chat.marks import Marks
from llmtrain.data.shards.token_stream import TokenArray

SHORT_TOKENS = 32  # longer answers are hardly ever given word by word
_DEVIATIONS = 1.96  # of the 95% interval


@dataclass(frozen=True, slots=True)
class Question:
    """The tokens of a conversation up to its first answer, and that answer."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class ExactMatches:
    """The number of questions answered word for word, and Wilson's 95% interval of the share."""

    questions: int
    exact: int
    share: float
    share_low: float
    share_high: float


def short_questions(
    conversations: Iterable[tuple[int, TokenArray]], marks: Marks
) -> Iterator[Question]:
    """Yield the questions whose first answer has at most `SHORT_TOKENS` tokens."""
    for _, values in conversations:
        spoken = marks.is_assistant(values)
        first = int(spoken.argmax())
        after = first + int(np.append(~spoken[first:], True).argmax())
        if 0 < first < after <= first + SHORT_TOKENS:
            ids = marks.ids(values)
            yield Question(ids[:first].tolist(), ids[first:after].tolist())


def count_exact(
    questions: Iterable[Question],
    answer: Callable[[Question], str],
    text_of: Callable[[list[int]], str],
) -> ExactMatches:
    """Return how many of `questions` get the right `answer`, up to spaces around it."""
    asked = exact = 0
    for question in questions:
        asked += 1
        exact += answer(question).strip() == text_of(question.answer).strip()
    return ExactMatches(asked, exact, *share_interval(exact, asked))


def share_interval(count: int, total: int) -> tuple[float, float, float]:
    """Return count / total and its 95% interval (Wilson 1927); NaN if `total` is 0."""
    if total == 0:
        return math.nan, math.nan, math.nan
    share, z2 = count / total, _DEVIATIONS**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = share * (1 - share) / total + z2 / (4 * total**2)
    half = _DEVIATIONS * math.sqrt(spread) / (1 + z2 / total)
    return share, middle - half, middle + half
