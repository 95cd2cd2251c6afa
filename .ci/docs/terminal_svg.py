"""Record the README's commands in a terminal: python .ci/docs/terminal_svg.py docs/terminal.svg

Each command is typed into a pseudo-terminal of its own in an empty directory, with this machine's
cache. What stands on the screen at the end becomes one picture. Needs the extra `dev`, and a POSIX
system; takes as long as the commands do.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COMMANDS = (
    "llmtrain train --time 4m --out runs/first",
    "llmtrain eval runs/first",
    "llmtrain generate runs/first --prompt 'def ' --max-tokens 40 --seed 1",
)
_WIDTH, _LINES = 100, 200
_BASIC = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_PALETTE = (
    *((72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)),
    *((88, 166, 255), (188, 140, 255), (57, 197, 207), (201, 209, 217)),
)
_BRIGHT = (
    *((110, 118, 129), (255, 161, 152), (86, 211, 100), (227, 179, 65)),
    *((121, 192, 255), (210, 168, 255), (86, 212, 221), (240, 246, 252)),
)
_THEME = TerminalTheme((13, 17, 23), (201, 209, 217), list(_PALETTE), list(_BRIGHT))
# rich's own, without fonts from the network and with the page's own monospace font.
_FORMAT = """\
<svg class="rich-terminal" role="img" viewBox="0 0 {width} {height}"
    xmlns="http://www.w3.org/2000/svg">
    <title>{label}</title>
    <style>
    .{unique_id}-matrix {{
        font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
        white-space: pre;
    }}
    .{unique_id}-title {{
        font-size: 18px;
        font-family: system-ui, sans-serif;
    }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})"
        clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""


def main() -> None:
    """Run the commands, and write the picture; the exit code is 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    options = parser.parse_args()
    console = Console(record=True, width=_WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    with tempfile.TemporaryDirectory() as work:
        for number, command in enumerate(COMMANDS):
            if number:
                console.print()
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold bright_white")))
            for line in screen_of(command, Path(work)):
                console.print(line, no_wrap=True, overflow="crop")
    console.print()  # room for what hangs below the last line
    code_format = _FORMAT.replace("{label}", _label())
    svg = console.export_svg(title="llmtrain", theme=_THEME, code_format=code_format)
    options.picture.write_text(trimmed(svg), encoding="utf-8", newline="\n")


def _label() -> str:
    return "A terminal: " + "; ".join(COMMANDS).replace("&", "&amp;").replace("<", "&lt;")


def trimmed(svg: str) -> str:
    """Return the picture without spaces at the ends of its lines."""
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE).rstrip() + "\n"


def screen_of(command: str, directory: Path) -> list[Text]:
    """Return what is on the screen when the command has ended. Raises SystemExit where it fails."""
    words = shlex.split(command)
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _WIDTH, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(_WIDTH)}
    environment.pop("NO_COLOR", None)
    started = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=directory,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    screen = pyte.Screen(_WIDTH, _LINES)
    stream = pyte.ByteStream(screen)
    while received := _read(main_end):
        stream.feed(received)
    os.close(main_end)
    lines = lines_of(screen)
    if started.wait():
        raise SystemExit("\n".join(line.plain for line in lines))
    return lines


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux says so where the other end is closed
        return b""


def lines_of(screen: pyte.Screen) -> list[Text]:
    """Return the lines of a screen with their colours, down to the last that is not empty."""
    lines = []
    for row in range(screen.lines):
        cells = screen.buffer[row]
        styled = ((style_of(cells[at]), cells[at].data) for at in range(screen.columns))
        same = groupby(styled, key=lambda cell: cell[0])
        line = Text.assemble(*(("".join(text for _, text in some), style) for style, some in same))
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def style_of(cell: pyte.screens.Char) -> Style:
    """Return how a cell of the screen is drawn."""
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold or None,
        italic=cell.italics or None,
        underline=cell.underscore or None,
    )


def _colour(name: str) -> str | None:
    """Return rich's name of a colour of pyte; None where it is the terminal's own."""
    if name == "default":
        return None
    plain = name.removeprefix("bright").replace("brown", "yellow")
    if plain in _BASIC:
        return f"bright_{plain}" if name.startswith("bright") else plain
    return f"#{name}"


if __name__ == "__main__":
    main()
