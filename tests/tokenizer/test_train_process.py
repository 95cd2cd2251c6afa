"""Training in a process gives what training here gives, and ends when it is asked to."""

from __future__ import annotations

import itertools
import random

import psutil
import pytest

from llmtrain.errors import DataError, LlmtrainError, UsageError
from llmtrain.tokenizer.train_process import train_in_process
from llmtrain.tokenizer.training import VocabularySpec, learn_vocabulary


def texts(words: int) -> list[str]:
    draw = random.Random(0)
    found = ("".join(draw.choices("abcdefghijklmno", k=draw.randint(3, 9))) for _ in range(words))
    return [" ".join(found), "líne\u2028 ends\r\n\x00 \U0001f600"]


def workers() -> list[psutil.Process]:
    """Return the live processes that train for this one."""
    children = psutil.Process().children()
    return [c for c in children if "tokenizer.train_process" in " ".join(c.cmdline())]


def test_the_vocabulary_is_the_same() -> None:
    assert train_in_process(texts(500), VocabularySpec(400), lambda: None) == learn_vocabulary(
        texts(500), VocabularySpec(400)
    )
    assert workers() == []


def test_refusals_come_through() -> None:
    with pytest.raises(UsageError) as in_process:
        train_in_process(
            ["".join(map(chr, range(0x4E00, 0x4F00)))], VocabularySpec(300), lambda: None
        )
    with pytest.raises(UsageError) as here:
        learn_vocabulary(["".join(map(chr, range(0x4E00, 0x4F00)))], VocabularySpec(300))
    assert (in_process.value.message, in_process.value.hint) == (
        here.value.message,
        here.value.hint,
    )


def test_a_stop_ends_it_at_once() -> None:
    calls = itertools.count()

    def stop() -> None:
        if next(calls) == 4:
            assert workers()
            raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        train_in_process(texts(300_000), VocabularySpec(8000), stop)
    assert workers() == []


def test_a_worker_that_dies_is_named() -> None:
    calls = itertools.count()

    def kill() -> None:
        if next(calls) == 4:
            workers()[0].kill()

    with pytest.raises(LlmtrainError, match=r"trained the tokenizer, (was killed|ended)"):
        train_in_process(texts(300_000), VocabularySpec(8000), kill)


@pytest.mark.parametrize("at", range(4))
def test_a_stop_while_text_is_sent_is_that_stop(at: int) -> None:
    """What is still in the pipe's buffer cannot be sent to a process that has ended."""
    some = [" ".join(f"{number}words" for number in range(100_000))] * 20
    calls = itertools.count()

    def stop() -> None:
        if next(calls) == at:
            for worker in workers():
                worker.kill()
                worker.wait(10)
            raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        train_in_process(some, VocabularySpec(8000), stop)
    assert workers() == []


def test_a_stop_that_ended_the_worker_first_is_that_stop() -> None:
    """A signal to all processes of a job ends the worker before this process looks at it."""
    calls = itertools.count()

    def stop() -> None:
        if next(calls) == 1:
            workers()[0].kill()
        elif workers() == [] or workers()[0].status() == psutil.STATUS_ZOMBIE:
            raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        train_in_process(texts(300_000), VocabularySpec(8000), stop)
