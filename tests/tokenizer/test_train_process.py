"""Learning apart gives what learning here gives, and ends when it is asked to."""

from __future__ import annotations

import random
from collections.abc import Iterator

import psutil
import pytest

from llmtrain.errors import DataError, LlmtrainError, UsageError
from llmtrain.tokenizer.train_process import train_in_process
from llmtrain.tokenizer.training import VocabularySpec, learn_vocabulary


def texts(words: int) -> list[str]:
    draw = random.Random(0)
    found = ("".join(draw.choices("abcdefghijklmno", k=draw.randint(3, 9))) for _ in range(words))
    return [" ".join(found), "líne\u2028 ends\r\n\x00 \U0001f600"]


def learners() -> list[psutil.Process]:
    """Processes that learn for this one, and live."""
    children = psutil.Process().children()
    return [c for c in children if "tokenizer.learner" in " ".join(c.cmdline())]


def test_the_vocabulary_is_the_same() -> None:
    assert train_in_process(texts(500), VocabularySpec(400), lambda: None) == learn_vocabulary(
        texts(500), VocabularySpec(400)
    )
    assert learners() == []


def test_refusals_come_through() -> None:
    with pytest.raises(UsageError) as apart:
        train_in_process(
            ["".join(map(chr, range(0x4E00, 0x4F00)))], VocabularySpec(300), lambda: None
        )
    with pytest.raises(UsageError) as here:
        learn_vocabulary(["".join(map(chr, range(0x4E00, 0x4F00)))], VocabularySpec(300))
    assert (apart.value.message, apart.value.hint) == (here.value.message, here.value.hint)


def test_a_stop_ends_it_at_once() -> None:
    calls: Iterator[int] = iter(range(10**6))

    def stop() -> None:
        if next(calls) == 4:
            assert learners()
            raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        train_in_process(texts(300_000), VocabularySpec(8000), stop)
    assert learners() == []


def test_a_learner_that_dies_is_named() -> None:
    calls: Iterator[int] = iter(range(10**6))

    def kill() -> None:
        if next(calls) == 4:
            learners()[0].kill()

    with pytest.raises(LlmtrainError, match=r"learns the tokenizer (was killed|ended)"):
        train_in_process(texts(300_000), VocabularySpec(8000), kill)


def test_a_stop_while_text_is_sent_is_that_stop() -> None:
    """What is still in the pipe's buffer cannot be sent to a process that is ended."""
    some = [f"{number} words" for number in range(30)]
    for at in range(0, 30, 3):
        calls: Iterator[int] = iter(range(10**6))

        def stop(calls: Iterator[int] = calls, at: int = at) -> None:
            if next(calls) == at:
                for learner in learners():
                    learner.kill()
                    learner.wait(10)
                raise DataError("enough")

        with pytest.raises(DataError, match="enough"):
            train_in_process(some, VocabularySpec(300), stop)
