"""Two tasks without a download, made of Python's standard library, which every machine has.

`python_identifiers`: which of four names of a file comes next; chance is 1 in 4. The names are
drawn first and one of them is asked for, so that a model that ignores the context is at chance.
`python_brackets`: which bracket closes here; chance is 1 in 3. Each kind is the answer equally
often, so that always naming the commonest is at chance too.

The questions are the same for one version of Python. A model that was trained on builtin:python
has seen most of the text.
"""

from __future__ import annotations

import io
import keyword
import random
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

_NAME = re.compile(r"(?<![\w])[A-Za-z_][A-Za-z0-9_]{3,}(?![\w])")
_CONTEXT_CHARACTERS = 400
_NAMES = 4
_PAIRS = {")": "(", "]": "[", "}": "{"}
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
    """Return questions about names: one of each text, as long as more are needed."""
    found = (question for text in texts for question in _name_question(text))
    return list(_first(found, QUESTIONS))


def bracket_questions(texts: Iterable[str]) -> list[Question]:
    """Return questions about brackets, equally many for each kind."""
    each = QUESTIONS // len(_PAIRS)
    by_kind: dict[str, list[Question]] = {kind: [] for kind in _PAIRS}
    for text in texts:
        places = list(_closing_places(text))
        random.Random(text).shuffle(places)
        for kind, found in by_kind.items():
            at = next((place for place, closing in places if closing == kind), None)
            if at is not None and len(found) < each:
                context = text[max(0, at - _CONTEXT_CHARACTERS) : at]
                found.append(Question(context, tuple(_PAIRS), list(_PAIRS).index(kind)))
        if all(len(found) == each for found in by_kind.values()):
            break
    fewest = min(map(len, by_kind.values()))
    return [question for found in by_kind.values() for question in found[:fewest]]


OWN_TASKS: dict[str, Callable[[Iterable[str]], list[Question]]] = {
    "python_identifiers": identifier_questions,
    "python_brackets": bracket_questions,
}


def _name_question(text: str) -> Iterator[Question]:
    """Yield a question, if the text has names enough that are used again."""
    places: dict[str, list[int]] = {}
    for match in _NAME.finditer(text):
        if not keyword.iskeyword(match[0]) and match.start() >= _CONTEXT_CHARACTERS:
            places.setdefault(match[0], []).append(match.start())
    names = sorted(name for name, where in places.items() if len(where) > 1)
    if len(names) < _NAMES:
        return
    draw = random.Random(text)
    choices = draw.sample(names, _NAMES)
    answer = draw.randrange(_NAMES)
    at = draw.choice(places[choices[answer]])
    yield Question(text[at - _CONTEXT_CHARACTERS : at], tuple(choices), answer)


def _closing_places(text: str) -> Iterator[tuple[int, str]]:
    """Yield position and kind of each closing bracket of Python code; none if it is no code."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.OP and token.string in _PAIRS:
                at = starts[token.start[0] - 1] + token.start[1]
                if at >= _CONTEXT_CHARACTERS and text[at : at + 1] == token.string:
                    yield at, token.string
    except (tokenize.TokenError, SyntaxError, IndexError):
        return


def _first(questions: Iterable[Question], count: int) -> Iterator[Question]:
    for number, question in enumerate(questions):
        if number == count:
            return
        yield question
