"""`llmtrain data`: look at text, prepare it, and what the cache holds of it."""

from __future__ import annotations

import typer

from llmtrain.cli.command import command, group
from llmtrain.cli.data import cache, inspect
from llmtrain.cli.data.prepare import prepare


def register(app: typer.Typer) -> None:
    """Add the group `data` to `app`."""
    data = group("Text: look at it, prepare it ahead of training, and what the cache holds of it.")
    app.add_typer(data, name="data")
    command(data, "prepare")(prepare)
    inspect.register(data)
    cache.register(data)
