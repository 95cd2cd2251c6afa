"""Lines for files and pipes: what takes long says how far it is, and what does not is quiet."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from llmtrain.cli import progress
from llmtrain.cli.progress import PlainProgress
from llmtrain.progress import Progress


class Notes:
    """A voice that keeps what it is to say."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[str]]:
    """What is said of two phases in hundred events each, so many seconds apart."""

    def lines(apart_s: float) -> list[str]:
        ticks = count()
        monkeypatch.setattr(progress.time, "monotonic", lambda: apart_s * next(ticks))
        notes = Notes()
        observer = PlainProgress(notes)  # type: ignore[arg-type]
        for phase in ("reading", "tokenizing"):
            for done in range(1, 101):
                observer(Progress(phase, done, 100, remaining_s=apart_s * (100 - done)))
        return notes.said

    return lines


def test_a_line_each_tenth_of_what_takes_long(told: Callable[[float], list[str]]) -> None:
    said = told(10.0)
    assert said[0] == "reading 10% of 100 B, left 15m 00s"
    assert [line.split()[0] for line in said] == ["reading"] * 10 + ["tokenizing"] * 10


def test_no_line_of_what_takes_seconds(told: Callable[[float], list[str]]) -> None:
    assert told(0.04) == []


def test_five_seconds_are_between_lines(told: Callable[[float], list[str]]) -> None:
    assert [line.split(" of")[0] for line in told(0.2)][:3] == [
        "reading 26%",
        "reading 51%",
        "reading 76%",
    ]
