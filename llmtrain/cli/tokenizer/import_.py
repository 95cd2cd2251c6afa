"""`llmtrain tokenizer import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.cli.tokenizer.train import written


def import_(
    output: Output,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A sentencepiece .model, a tokenizer.json, a .tiktoken, or a directory with one.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The directory to write.")],
    overwrite: options.Overwrite = False,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            help="How a .tiktoken splits text: gpt2, cl100k_base, o200k_base, or a regex.",
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator", help="The token between documents; default: its end-of-text token."
        ),
    ] = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Import it even if it changes some text.")
    ] = False,
) -> None:
    """Import a tokenizer of another library, with its ids."""
    from llmtrain.documents.tokenizer import TokenizerImport
    from llmtrain.tokenizer import ImportOptions, import_tokenizer

    imported = import_tokenizer(file, ImportOptions(pattern, separator, allow_lossy))
    tokenizer = imported.tokenizer
    with written(out, overwrite=overwrite):
        tokenizer.save(out)
    for warning in imported.warnings:
        output.warning(warning)
    document = TokenizerImport.of(
        imported,
        tokenizer,
        out=out,
        source=imported.path,
        kind=tokenizer.kind.name,
        separator_id=tokenizer.eos_id,
        sha256=tokenizer.fingerprint,
    )
    how = ", added" if imported.added_separator else ""
    line = (
        f"{out}: {tokenizer.vocab_size} pieces of {imported.path}; separator "
        f"{imported.separator} ({tokenizer.eos_id}{how})"
    )
    if tokenizer.end_id is not None:
        begin = tokenizer.piece(tokenizer.separator_id)
        line += f", and {begin} ({tokenizer.separator_id}) begins documents"
    output.answer(document, [line])
