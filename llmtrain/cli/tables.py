"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from rich.table import Table
from rich.text import Text

from llmtrain.cli.output import escape_control


def rows_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    justify: Literal["left", "right"] = "left",
) -> Table:
    """Return a table of rows: a name, a value, and texts about it."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    name, value, *words = columns
    table.add_column(name, style="bold", no_wrap=True)
    table.add_column(value, style="cyan", justify=justify)
    for word in words:
        table.add_column(word)
    for row in rows:
        table.add_row(*row)
    return table


def columns_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = ()
) -> Table:
    """Return a table under headings, its cells broken between words where it is too wide.

    `numbers` are the columns that are aligned at the right.
    """
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape_control(cell)) for cell in row))
    return table


def facts_table(rows: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """Return a table of names and values, without headings of columns."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(escape_control(value)))
    return table


def plain_value(value: object) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
