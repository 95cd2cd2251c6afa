"""`llmtrain data prepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli.options import (
    DataOption,
    JsonOption,
    ProfileOption,
    ProfileTextFieldOption,
    SetOption,
    flag_settings,
    whole_number,
)
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.engine.prepare_data import PreparedAhead


def prepare(
    output: Output,
    profile: ProfileOption = None,
    data: DataOption = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="A tokenizer directory; default: train one."),
    ] = None,
    text_field: ProfileTextFieldOption = None,
    workers: Annotated[
        int | None,
        whole_number("--workers", "Processes that tokenize; default: one per core.", 1),
    ] = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> int:
    """Tokenize text into shards in the cache, for `train` with the same options.

    After an interruption, the same command continues where it stopped.
    """
    from llmtrain.train.signals import stop_on_signals

    flags = flag_settings(
        data_sources=data or None,
        data_text_field=text_field,
        data_tokenizer=tokenizer,
        device_workers=workers,
    )
    with stop_on_signals() as stop:
        from llmtrain.cli.progress import watching
        from llmtrain.documents.data import DataPrepare
        from llmtrain.engine.prepare_data import prepare_ahead
        from llmtrain.engine.request import TrainRequest

        request = TrainRequest(profile=profile, assignments=set_ or [], flags=flags)
        with watching(output) as observe:
            prepared = prepare_ahead(request, observe, stop.check)
    if json:
        output.document(DataPrepare.of_prepared(prepared))
    else:
        _show(output, prepared)
    return 0


def _show(output: Output, prepared: PreparedAhead) -> None:
    from llmtrain.units import format_bytes, format_count, format_duration

    index = prepared.index
    train, validation = format_count(index.train.tokens), format_count(index.validation.tokens)
    rows = {
        "shards": prepared.directory,
        "tokenizer": f"{prepared.tokenizer} ({index.vocab_size} pieces)",
        "text": format_bytes(prepared.text_bytes),
        "tokens": f"{train} to train on, {validation} to validate",
        "bytes per token": f"{prepared.text_bytes / prepared.tokens:.3f}",
        "time": format_duration(prepared.seconds),
    }
    for name, value in rows.items():
        output.result(f"{name:<18}{value}")
