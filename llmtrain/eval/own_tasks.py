"""Two tasks without a download, made of Python's standard library, which every machine has.

`python_identifiers`: which of four names of a file comes next; chance is 1 in 4. Each of the four
is asked for once, so that whoever prefers a name, as for its length, is right once in four.
`python_brackets`: which bracket closes here; chance is 1 in 3. Each place is asked for three times,
with each kind of bracket opened and the rest of the context unchanged, so that whatever a model
makes of the rest, as of the characters just before, is right once in three.

A choice begins where no tokenizer joins characters to one token across: a name with its space, a
bracket after a letter or digit. The questions are the same for one version of Python. A model that
was trained on builtin:python has seen most of the text.
"""

from __future__ import annotations

import io
import keyword
import random
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

_NAME = re.compile(r"(?<=\S )[A-Za-z_][A-Za-z0-9_]{3,}(?![\w])")
_CONTEXT_CHARACTERS = 400
_NAMES = 4
_OPENING, _CLOSING = "([{", ")]}"
_FEWEST_INSIDE = 8  # characters between a bracket and the one that closes it
QUESTIONS = 240  # of a task, divisible by the numbers of choices


@dataclass(frozen=True, slots=True)
class Question:
    """A text, the choices for how it goes on, and the number of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int

    def document(self) -> dict[str, object]:
        """Return the question as a row of a data set."""
        return {"context": self.context, "choices": list(self.choices), "answer": self.answer}


def identifier_questions(texts: Iterable[str]) -> list[Question]:
    """Return questions about names: four names of each text, each asked for once."""
    return _asked(map(_name_questions, texts))


def bracket_questions(texts: Iterable[str]) -> list[Question]:
    """Return questions about brackets: one place of each text, asked for with each kind."""
    return _asked(map(_bracket_questions, texts))


OWN_TASKS: dict[str, Callable[[Iterable[str]], list[Question]]] = {
    "python_identifiers": identifier_questions,
    "python_brackets": bracket_questions,
}


def _asked(questions_of_texts: Iterable[list[Question]]) -> list[Question]:
    """Return the questions of as many texts as are needed, those of a text one after another."""
    return list(islice(chain.from_iterable(questions_of_texts), QUESTIONS))


def _name_questions(text: str) -> list[Question]:
    """Return a question for each of four names; none if the text has fewer that are used again."""
    places: dict[str, list[int]] = {}
    for match in _NAME.finditer(text):
        if not keyword.iskeyword(match[0]) and match.start() > _CONTEXT_CHARACTERS:
            places.setdefault(match[0], []).append(match.start() - 1)
    names = sorted(name for name, where in places.items() if len(where) > 1)
    if len(names) < _NAMES:
        return []
    draw = random.Random(text)
    drawn = draw.sample(names, _NAMES)
    spaces = [draw.choice(places[name]) for name in drawn]
    choices = tuple(f" {name}" for name in drawn)
    return [
        Question(text[space - _CONTEXT_CHARACTERS : space], choices, answer)
        for answer, space in enumerate(spaces)
    ]


def _bracket_questions(text: str) -> list[Question]:
    """Return a question for each kind of bracket at one place of the text; none without a place."""
    places = list(_bracket_places(text))
    if not places:
        return []
    opening, closing = random.Random(text).choice(places)
    start = closing - _CONTEXT_CHARACTERS
    before, after = text[start:opening], text[opening + 1 : closing]
    return [
        Question(before + bracket + after, tuple(_CLOSING), answer)
        for answer, bracket in enumerate(_OPENING)
    ]


def _bracket_places(text: str) -> Iterator[tuple[int, int]]:
    """Yield where a bracket of Python code opens and where it closes; none if it is no code."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    opened: list[int] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.OP or token.string not in (*_OPENING, *_CLOSING):
                continue
            at = starts[token.start[0] - 1] + token.start[1]
            if text[at : at + 1] != token.string:
                return  # the line ends of Python's lexer are not all of `splitlines`
            if token.string in _OPENING:
                opened.append(at)
                continue
            opening = opened.pop()
            is_seen = opening >= at - _CONTEXT_CHARACTERS >= 0
            if is_seen and at - opening > _FEWEST_INSIDE and text[at - 1].isalnum():
                yield opening, at
    except (tokenize.TokenError, SyntaxError, IndexError):
        return
