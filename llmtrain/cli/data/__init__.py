"""`llmtrain data`: inspect text, prepare it, and manage the cache."""

from __future__ import annotations

import typer

from llmtrain.cli.command import command, group
from llmtrain.cli.data import cache, inspect
from llmtrain.cli.data.prepare import prepare


def register(app: typer.Typer) -> None:
    """Add the group `data` to `app`."""
    data = group("Text: inspect it, prepare it ahead of training, and manage the cache.")
    app.add_typer(data, name="data")
    command(data, "prepare", "llmtrain data prepare --profile cpu-small --data notes/")(prepare)
    inspect.register(data)
    cache.register(data)
