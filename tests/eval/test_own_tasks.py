"""Questions whose answers cannot be guessed from their form."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import random
import textwrap
from collections import Counter
from collections.abc import Iterator

import pytest

from llmtrain.eval.own_tasks import (
    OWN_TASKS,
    QUESTIONS,
    Question,
    bracket_questions,
    identifier_questions,
)

MODULES = (argparse, ast, dataclasses, inspect, json.decoder, random, textwrap)


def texts(copies: int = 1) -> Iterator[str]:
    """Sources of modules; copies differ by a comment, which draws other questions."""
    for number in range(copies):
        for module in MODULES:
            yield inspect.getsource(module) + f"# {number}\n"


def test_names_are_asked_for_where_they_stand() -> None:
    whole = list(texts())
    found = identifier_questions(whole)
    assert len(found) >= 5
    for question in found:
        assert len(set(question.choices)) == 4
        right = question.context + question.choices[question.answer]
        assert any(right in text for text in whole)


def test_brackets_are_asked_for_where_they_close() -> None:
    whole = list(texts())
    for question in bracket_questions(whole):
        assert question.choices == (")", "]", "}")
        assert any(question.context + question.choices[question.answer] in t for t in whole)


def test_each_bracket_is_the_answer_equally_often() -> None:
    counts = Counter(question.answer for question in bracket_questions(texts(20)))
    assert len(set(counts.values())) == 1
    assert sum(counts.values()) <= QUESTIONS


@pytest.mark.parametrize("rule", ["first", "longest", "shortest", "alphabetical"])
def test_who_does_not_read_the_context_is_at_chance(rule: str) -> None:
    def choose(question: Question) -> int:
        names = question.choices
        key = {"first": names[0], "alphabetical": min(names)}
        by_length = {"longest": max(names, key=len), "shortest": min(names, key=len)}
        return names.index((key | by_length)[rule])

    found = identifier_questions(texts(40))
    right = sum(choose(question) == question.answer for question in found)
    error = (0.25 * 0.75 / len(found)) ** 0.5
    assert abs(right / len(found) - 0.25) < 3 * error


@pytest.mark.parametrize("task", OWN_TASKS)
def test_questions_are_the_same_every_time(task: str) -> None:
    assert OWN_TASKS[task](texts()) == OWN_TASKS[task](texts())


@pytest.mark.parametrize("text", ["", "x = (", "not ] python ( at all\n" * 50, "\x00", "é" * 2000])
@pytest.mark.parametrize("task", OWN_TASKS)
def test_what_is_no_code_asks_nothing(task: str, text: str) -> None:
    assert OWN_TASKS[task]([text]) == []
