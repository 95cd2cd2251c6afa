"""The only place that writes to the terminal: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TextIO, cast

from llmtrain.cli.streams import UnfailingStream, unread_output_lost, write_text
from llmtrain.files import escape_names

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from llmtrain.documents.base import Document

    Part = str | RenderableType  # of what people read: a line or a table

# Control characters except tabs and line ends, and halves of surrogate pairs.
_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Output:
    """The output of a command: results on stdout, everything else on stderr."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    json: bool = False  # the result is to be a document

    @cached_property
    def stderr(self) -> Console:
        """The console of everything that is not a result: plain, unbroken lines off a terminal."""
        from rich.console import Console

        stream = cast("TextIO", UnfailingStream(sys.stderr))
        console = Console(file=stream, stderr=True, highlight=False)
        console.soft_wrap = not console.is_terminal  # a terminal's own wrapping breaks words
        return console

    @property
    def is_live(self) -> bool:
        """True if stderr is a terminal that can redraw a line."""
        return self.stderr.is_terminal and not self.stderr.is_dumb_terminal and not self.quiet

    def answer(self, document: Document, parts: Iterable[Part], note: str = "") -> None:
        """Print the result: the document with --json, else lines and tables, and a note."""
        if self.json:
            self.document(document)
            return
        self.show_all(parts)
        if note:
            self.note(note)

    def show_all(self, parts: Iterable[Part]) -> None:
        """Print lines and tables as the result."""
        for part in parts:
            if isinstance(part, str):
                self.result(part)
            else:
                self.show(part)

    def result(self, text: str) -> None:
        """Print one line of the result."""
        write_text(escape_control(text) + "\n")

    def wrapped(self, text: str, indent: str = "") -> list[str]:
        """Return prose as lines that a terminal does not break within words; off it, as one."""
        if not sys.stdout.isatty():
            return [indent + text]
        return textwrap.wrap(
            text,
            self.stdout.width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def text(self, text: str) -> None:
        """Print a part of a text at once: exactly in a pipe, escaped on a terminal."""
        write_text(escape_control(text) if sys.stdout.isatty() else text, flush=True)

    @cached_property
    def stdout(self) -> Console:
        """The console of results, 160 columns wide off a terminal."""
        from rich.console import Console

        return Console(highlight=False, width=None if sys.stdout.isatty() else 160)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or panel as the result."""
        write_text("", flush=True)  # the console would flush it and not name stdout in an error
        is_terminal, console = sys.stdout.isatty(), self.stdout
        with console.capture() as captured:
            console.print(renderable)
        lines = captured.get().removesuffix("\n").split("\n")
        write_text("".join((line if is_terminal else line.rstrip()) + "\n" for line in lines))

    def document(self, document: Document) -> None:
        """Print the one JSON document of a `--json` call."""
        with unread_output_lost():
            write_text(json_text(document, indent=2), flush=True)

    def document_line(self, document: Document) -> None:
        """Print one of several documents as a line. Raises BrokenPipeError if nobody reads it."""
        write_text(json_text(document, indent=None), flush=True)

    def note(self, text: str, *, in_one_piece: bool = False) -> None:
        """Print an informative line, unless quiet.

        `in_one_piece` is for commands: broken by line ends they cannot be copied.
        """
        if not self.quiet:
            self.stderr.print(escape_control(text), markup=False, soft_wrap=in_one_piece or None)

    def detail(self, text: str) -> None:
        """Print a line that is only shown with -v."""
        if self.verbose and not self.quiet:
            self.stderr.print(escape_control(text), markup=False, style="dim")

    def warning(self, text: str) -> None:
        """Print a warning."""
        self.stderr.print(f"[yellow]warning:[/yellow] {_escaped(text)}")

    def error(self, message: str, hint: str | None) -> None:
        """Print what went wrong in one line, and what to type next."""
        self.stderr.print(f"[bold red]error:[/bold red] {_escaped(message)}")
        if hint:
            self.hint(hint)

    def hint(self, text: str) -> None:
        """Print what to type next."""
        self.stderr.print(f"[bold]hint:[/bold] {_escaped(text)}", soft_wrap=True)


def json_text(document: Document, indent: int | None) -> str:
    """Return a document as `--json` prints it."""
    values = escape_names(document.json_values())
    return escape_control(json.dumps(values, indent=indent)) + "\n"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(escape_control(" ".join(text.splitlines())))


def escape_control(text: str) -> str:
    """Return `text` with control characters and surrogates escaped as in JSON.

    Names of files, and keys in them, may contain either. A byte of a name that is not UTF-8 is
    written as in run.yaml: `\\xe9`.
    """
    return _NOT_PRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", escape_names(text))
