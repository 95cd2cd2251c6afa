"""Questions whose answers cannot be guessed from their form."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import random
import textwrap
from collections.abc import Iterator

import pytest

from llmtrain.eval.own_tasks import (
    OWN_TASKS,
    QUESTIONS,
    Question,
    bracket_questions,
    identifier_questions,
)
from llmtrain.tokenizer import Tokenizer
from tests.data.fixed import TOKENIZER

MODULES = (argparse, ast, dataclasses, inspect, json.decoder, random, textwrap)


def texts(copies: int = 1) -> Iterator[str]:
    """Sources of modules; copies differ by a comment, which draws other questions."""
    for number in range(copies):
        for module in MODULES:
            yield inspect.getsource(module) + f"# {number}\n"


def test_names_are_asked_for_where_they_stand() -> None:
    whole = list(texts())
    found = identifier_questions(whole)
    assert len(found) >= 5 * 4
    for question in found:
        assert len(set(question.choices)) == 4
        right = question.context + question.choices[question.answer]
        assert any(right in text for text in whole)


def test_brackets_are_asked_for_where_they_close() -> None:
    whole = list(texts())
    found = bracket_questions(whole)
    assert len(found) >= 5 * 3
    for number in range(0, len(found), 3):
        three = found[number : number + 3]
        assert {question.choices for question in three} == {(")", "]", "}")}
        columns = [set(each) for each in zip(*(q.context for q in three), strict=True)]
        assert [column for column in columns if len(column) > 1] == [{"(", "[", "{"}]
        texts_so_far = [q.context + q.choices[q.answer] for q in three]
        assert sum(any(each in text for text in whole) for each in texts_so_far) == 1


@pytest.mark.parametrize("task", OWN_TASKS)
def test_who_does_not_read_what_is_asked_is_at_chance_exactly(task: str) -> None:
    """Any preference of choices, and for brackets one by the end of the context too."""
    found = OWN_TASKS[task](texts(40))
    kinds = len(found[0].choices)
    assert len(found) == QUESTIONS
    for seed in range(5):

        def preferred(question: Question, seed: int = seed) -> str:
            seen = question.context[-8:] if task == "python_brackets" else ""
            return min(question.choices, key=lambda c: random.Random(f"{seed}{seen}{c}").random())

        right = sum(preferred(q) == q.choices[q.answer] for q in found)
        assert right == QUESTIONS // kinds


@pytest.mark.parametrize("task", OWN_TASKS)
def test_no_choice_shares_a_token_with_its_context(task: str) -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    for question in OWN_TASKS[task](texts()):
        given = tokenizer.encode(question.context)
        for choice in question.choices:
            assert tokenizer.encode(question.context + choice)[: len(given)] == given


@pytest.mark.parametrize("task", OWN_TASKS)
def test_questions_are_the_same_every_time(task: str) -> None:
    assert OWN_TASKS[task](texts()) == OWN_TASKS[task](texts())


@pytest.mark.parametrize("text", ["", "x = (", "not ] python ( at all\n" * 50, "\x00", "é" * 2000])
@pytest.mark.parametrize("task", OWN_TASKS)
def test_what_is_no_code_asks_nothing(task: str, text: str) -> None:
    assert OWN_TASKS[task]([text]) == []
