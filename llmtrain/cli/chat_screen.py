"""What a chat reads and shows: on a terminal with Markdown and history, in a pipe as plain text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from llmtrain.cli.output import Output, escape_control

_HISTORY_LINES = 1000


class ChatScreen:
    """The terminal or the pipe of a chat."""

    def __init__(self, output: Output, model: str) -> None:
        self._output = output
        self._model = model
        self._is_terminal = sys.stdin.isatty() and sys.stdout.isatty()

    def greet(self) -> None:
        """Say who is there."""
        if self._is_terminal:
            _remember_lines()
            self.note(f"You talk to {self._model}. /help lists commands, Ctrl-D ends.")

    def message(self) -> str | None:
        """Return what is typed or piped next, lines that end in a backslash joined; None: no more.

        Ctrl-C drops what was typed.
        """
        line = self._line("> ")
        while line is not None and line.endswith("\\"):
            line = line[:-1] + "\n" + (self._line(". ") or "")
        return line

    def _line(self, prompt: str) -> str | None:
        """Return the next line; None at the end."""
        if not self._is_terminal:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        while True:
            try:
                return input(prompt)
            except EOFError:
                self._output.result("")
                return None
            except KeyboardInterrupt:
                self._output.result("")

    @contextmanager
    def answer(self) -> Iterator[Callable[[str], None]]:
        """Yield what shows the next piece of an answer."""
        if not self._is_terminal:
            yield self._output.text
            self._output.text("\n")
            return
        from llmtrain.cli.markdown_stream import markdown_stream

        with markdown_stream(self._output.stdout) as show:
            yield show

    def finish(self, pieces_per_s: float, *, is_stopped: bool, forgotten: int) -> None:
        """Say how fast the answer was, and what was left out of it."""
        if not self._is_terminal:
            return
        parts = [f"{pieces_per_s:.0f} tokens/s"]
        if is_stopped:
            parts.append("stopped")
        if forgotten:
            parts.append(f"the oldest {forgotten} messages no longer fit the context")
        self.note(", ".join(parts))

    def note(self, text: str) -> None:
        """Show a remark that is no part of the conversation."""
        for line in text.splitlines():
            self._output.stderr.print(escape_control(line), markup=False, style="dim")


def _remember_lines() -> None:
    """Let the arrow keys bring back earlier lines, where the system has that."""
    with suppress(ImportError):  # Windows' console does it by itself
        import readline

        readline.set_history_length(_HISTORY_LINES)
