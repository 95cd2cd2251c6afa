"""`llmtrain data prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.documents.data import DataPrepare


def prepare(
    output: Output,
    profile: options.Profile = None,
    data: options.Data = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="A tokenizer directory; default: train one."),
    ] = None,
    text_field: options.ProfileTextField = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes that tokenize; default: one per core."),
    ] = None,
    set_: options.Set = None,
) -> None:
    """Tokenize text into shards in the cache, for `train` with the same options.

    After an interruption, the same command continues where it stopped.
    """
    from llmtrain.train.signals import stop_on_signals

    with stop_on_signals() as stop:
        from llmtrain.cli.progress import watching
        from llmtrain.documents.data import DataPrepare
        from llmtrain.engine.prepare_data import prepare_ahead

        request = options.request_of(
            profile,
            set_,
            data_sources=data,
            data_text_field=text_field,
            data_tokenizer=tokenizer,
            device_workers=workers,
        )
        with watching(output) as observe:
            prepared = prepare_ahead(request, observe, stop.check)
    train, validation = prepared.index.train, prepared.index.validation
    document = DataPrepare.of(
        prepared,
        prepared.index,
        documents=train.documents + validation.documents,
        train_tokens=train.tokens,
        validation_tokens=validation.tokens,
        bytes_per_token=prepared.text_bytes / prepared.tokens,
    )
    output.answer(document, _lines(document))


def _lines(prepared: DataPrepare) -> Iterator[str]:
    from llmtrain.units import format_bytes, format_count, format_duration

    train, validation = map(format_count, (prepared.train_tokens, prepared.validation_tokens))
    rows = {
        "shards": prepared.directory,
        "tokenizer": f"{prepared.tokenizer} ({prepared.vocab_size} pieces)",
        "text": format_bytes(prepared.text_bytes),
        "tokens": f"{train} to train on, {validation} to validate",
        "bytes per token": f"{prepared.bytes_per_token:.3f}",
        "time": format_duration(prepared.seconds),
    }
    return (f"{name:<18}{value}" for name, value in rows.items())
