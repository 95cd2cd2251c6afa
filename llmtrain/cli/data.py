"""`llmtrain data inspect`."""

from __future__ import annotations

import typer

from llmtrain.cli import data_inspect
from llmtrain.cli.command import group


def register(app: typer.Typer) -> None:
    """`data` is a group of `app`."""
    data = group("Look at text before it is trained on.")
    app.add_typer(data, name="data")
    data_inspect.register(data)
