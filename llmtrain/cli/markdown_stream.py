"""Markdown that is shown while it is written, on a terminal that may be small.

Blocks that are complete are printed for good; what is still being written is drawn again and
again below them, and never higher than the screen: a terminal cannot take back what has left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

from llmtrain.cli.output import escape_control

_FRAMES_PER_S = 12
_FENCES = ("```", "~~~")


@contextmanager
def markdown_stream(console: Console) -> Iterator[Callable[[str], None]]:
    """Yield what shows the next piece of a text."""
    shown, is_first = "", True

    def print_block(text: str) -> None:
        nonlocal is_first
        if not is_first:
            console.print()
        console.print(_markdown(text))
        is_first = False

    def showing(live: Live, piece: str) -> None:
        nonlocal shown
        complete, shown = split_complete(shown + piece)
        if complete:
            live.update("")
            print_block(complete)
        live.update(_End(shown, begins=is_first))

    try:
        with Live(console=console, refresh_per_second=_FRAMES_PER_S, transient=True) as live:
            yield partial(showing, live)
    finally:
        if shown.strip():
            print_block(shown)


def split_complete(text: str) -> tuple[str, str]:
    """Return the blocks that later text does not change, and the rest.

    A block ends at an empty line that is in no fence and is not followed by an indented line, which
    may belong to the list before it.
    """
    is_fenced, start, found = False, 0, 0
    was_empty = False
    for line in text.splitlines(keepends=True):
        if was_empty and not is_fenced and not line[0].isspace():
            found = start
        is_fence = line.lstrip().startswith(_FENCES)
        is_fenced, was_empty = is_fenced != is_fence, not line.strip()
        start += len(line)
    return text[:found].rstrip("\n"), text[found:]


@dataclass(frozen=True, slots=True)
class _End:
    """The last lines of a text that fit on the screen."""

    text: str
    begins: bool  # nothing is above it

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(_markdown(self.text), options, pad=False)
        if not self.begins and self.text.strip():
            lines.insert(0, [])
        for line in lines[-max(1, console.size.height - 2) :]:
            yield from line
            yield Segment.line()


def _markdown(text: str) -> Markdown:
    return Markdown(escape_control(text), hyperlinks=False)
