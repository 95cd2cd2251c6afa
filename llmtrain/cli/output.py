"""The only place that writes to the terminal: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO, cast

import llmtrain
from llmtrain.cli.streams import UnfailingStream, unread_output_lost, write_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Control characters but tabs and line ends, and halves of surrogate pairs.
_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Output:
    """How much is said, and in which form."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    @cached_property
    def stderr(self) -> Console:
        """Where everything that is not a result goes; plain where it is not a terminal."""
        from rich.console import Console

        stream = cast("TextIO", UnfailingStream(sys.stderr))
        return Console(file=stream, stderr=True, highlight=False, soft_wrap=True)

    @property
    def is_live(self) -> bool:
        """Whether somebody watches a terminal that can redraw a line."""
        return self.stderr.is_terminal and not self.stderr.is_dumb_terminal and not self.quiet

    def result(self, text: str) -> None:
        """One line of the result."""
        sys.stdout.write(_plain(text) + "\n")

    def show(self, renderable: RenderableType) -> None:
        """A table or panel as the result."""
        from rich.console import Console

        plain_width = None if sys.stdout.isatty() else 160
        Console(highlight=False, width=plain_width, soft_wrap=False).print(renderable)

    def document(self, values: Mapping[str, Any]) -> None:
        """The one JSON document of a `--json` call."""
        with unread_output_lost():
            write_line(_plain(_json(values, indent=2)))

    def document_line(self, values: Mapping[str, Any]) -> None:
        """One of several documents, in a line. Raises BrokenPipeError where nobody reads it."""
        write_line(_plain(_json(values, indent=None)))

    def note(self, text: str) -> None:
        """Something worth knowing; not said when quiet."""
        if not self.quiet:
            self.stderr.print(_plain(text), markup=False)

    def detail(self, text: str) -> None:
        """Something that is only said with -v."""
        if self.verbose and not self.quiet:
            self.stderr.print(_plain(text), markup=False, style="dim")

    def warning(self, text: str) -> None:
        """Something that may go wrong."""
        self.stderr.print(f"[yellow]warning:[/yellow] {_escaped(text)}")

    def error(self, message: str, hint: str | None) -> None:
        """What went wrong in one line, and what to type next."""
        self.stderr.print(f"[bold red]error:[/bold red] {_escaped(message)}")
        if hint:
            self.hint(hint)

    def hint(self, text: str) -> None:
        """What to type next."""
        self.stderr.print(f"[bold]hint:[/bold] {_escaped(text)}", soft_wrap=True)


def _finite(value: object) -> object:
    """`value` with None for each number that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def _json(values: Mapping[str, Any], indent: int | None) -> str:
    """Text, with what is not finite as null, as JSON wants."""
    whole = {
        "schema_version": llmtrain.SCHEMA_VERSION,
        "llmtrain": llmtrain.__version__,
        **values,
    }
    return json.dumps(_finite(whole), indent=indent, ensure_ascii=False, default=str)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(_plain(" ".join(text.splitlines())))


def _plain(text: str) -> str:
    """`text` with what a terminal obeys, or no encoding has, spelt out as JSON spells it.

    Names of files and of keys in them can hold either.
    """
    return _NOT_SHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
