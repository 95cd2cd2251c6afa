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
    command(
        tokenizer, "train", "llmtrain tokenizer train --vocab-size 8192 --data notes/ --out tok"
    )(train)
    command(tokenizer, "import", "llmtrain tokenizer import tokenizer.json --out tok")(import_)
    command(tokenizer, "encode", "llmtrain tokenizer encode --tokenizer tok notes.txt")(encode)
    command(tokenizer, "decode", "llmtrain tokenizer decode --tokenizer tok ids.txt")(decode)
    command(tokenizer, "inspect", "llmtrain tokenizer inspect --tokenizer tok --data notes/")(
        inspect
    )
