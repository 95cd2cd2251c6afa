"""Markdown is shown as it grows, and stands there once when it is complete."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from llmtrain.cli.markdown_stream import markdown_stream, split_complete

HEIGHT = 10


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("", ""),
        ("one", ""),
        ("one\n\n", ""),
        ("one\n\ntwo", "one"),
        ("one\n\n\ntwo\n\nthree", "one\n\n\ntwo"),
        ("- a\n\n  more of a", ""),
        ("- a\n\n- b", "- a"),
        ("```py\na\n\nb", ""),
        ("```py\na\n\nb\n```\n\nc", "```py\na\n\nb\n```"),
        ("~~~\n\n", ""),
    ],
)
def test_a_block_is_complete_when_nothing_can_change_it(text: str, complete: str) -> None:
    first, rest = split_complete(text)
    assert first == complete
    assert text.startswith(first)
    assert text.endswith(rest)
    assert not text[len(first) : len(text) - len(rest)].strip()


def shown(pieces: list[str]) -> str:
    """What a terminal of ten lines gets."""
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=True,
        width=60,
        height=HEIGHT,
        color_system=None,
        legacy_windows=False,
    )
    with markdown_stream(console) as show:
        for piece in pieces:
            show(piece)
            console.print("", end="")  # draws what is shown now
    return out.getvalue()


def most_lines_up(text: str) -> int:
    """The most lines that the cursor goes up at once."""
    runs = re.findall(r"(?:\x1b\[1A(?:\x1b\[2K|\r)*)+", text)
    return max((run.count("\x1b[1A") for run in runs), default=0)


@pytest.mark.parametrize("end", ["\n\n", "\n", " "])
def test_nothing_is_drawn_again_that_has_left_the_screen(end: str) -> None:
    words = "words that are enough for more than one of the lines"
    text = shown([f"Number {n} of {words}.{end}" for n in range(30)])
    assert 0 < most_lines_up(text) < HEIGHT
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    last = "".join(plain.rpartition("Number 0 ")[1:])
    numbers = [int(each) for each in re.findall(r"Number\s+(\d+)", last)]
    assert sorted(set(numbers)) == list(range(30))
    assert numbers[-1] == 29


def test_complete_blocks_are_printed_once() -> None:
    text = shown(["# Title\n\n", "first\n\n", "x\n\n", "```\nlong\n\n", "code\n```\n\n", "last"])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert plain.index("Title") < plain.index("first") < plain.index("long") < plain.rindex("last")
    assert text.endswith("\n")


def test_an_error_while_it_is_written_keeps_what_was() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, height=HEIGHT)

    def interrupted() -> None:
        with markdown_stream(console) as show:
            show("one\n\ntwo")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert text.split()[0] == "one"
    assert text.split()[-1] == "two"
