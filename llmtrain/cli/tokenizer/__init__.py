"""`llmtrain tokenizer`: train, import, use and inspect tokenizers."""

from __future__ import annotations

import typer

from llmtrain.cli.command import command, group
from llmtrain.cli.tokenizer.import_ import import_
from llmtrain.cli.tokenizer.inspect import inspect
from llmtrain.cli.tokenizer.text import decode, encode
from llmtrain.cli.tokenizer.train import train


def register(app: typer.Typer) -> None:
    """Add the group `tokenizer` to `app`."""
    tokenizer = group("Tokenizers: train, import, use and inspect them.")
    app.add_typer(tokenizer, name="tokenizer")
    command(tokenizer, "train")(train)
    command(tokenizer, "import")(import_)
    command(tokenizer, "encode")(encode)
    command(tokenizer, "decode")(decode)
    command(tokenizer, "inspect")(inspect)
