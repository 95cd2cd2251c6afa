"""`llmtrain data inspect`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain.cli.command import command
from llmtrain.cli.options import (
    DataOption,
    JsonOption,
    ProfileOption,
    ProfileTextFieldOption,
    SetOption,
    flag_settings,
)
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.engine.inspect_data import DataReport


def register(group: typer.Typer) -> None:
    """`inspect` is a command of `group`."""
    command(group, "inspect")(inspect)


def inspect(
    output: Output,
    data: DataOption = None,
    profile: ProfileOption = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Count tokens with it; default: the profile's."),
    ] = None,
    text_field: ProfileTextFieldOption = None,
    set_: SetOption = None,
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, metavar="N", help="Look at the first N documents only."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """What is in a text: lengths, tokens, copies, leakage, languages, samples.

    Copies are looked for in 0.6 GB of memory a million documents.
    """
    from llmtrain.cli.progress import watching
    from llmtrain.engine.inspect_data import inspect_data
    from llmtrain.prepare.context import PrepareContext
    from llmtrain.profile.load import load_profile
    from llmtrain.train.distributed.signals import stop_on_signals

    flags = flag_settings(
        data_sources=data or None, data_text_field=text_field, data_tokenizer=tokenizer
    )
    loaded = load_profile(profile, assignments=set_ or [], flags=flags)
    with stop_on_signals() as stop, watching(output) as observe:
        report = inspect_data(
            loaded.profile,
            PrepareContext(_threads(), observe, stop.check),
            only_first=sample,
            is_for_profile=profile is not None,
        )
    if json:
        output.document(data_document(report))
        return 0
    from llmtrain.cli.data.report import show_report

    show_report(output, report)
    return 0


def _threads() -> int:
    from llmtrain.machine.probe import read_cpu

    return read_cpu().usable_cores


def data_document(report: DataReport) -> dict[str, Any]:
    """The `data-inspect` document."""
    found, facts = report.found, report.found.facts
    epochs = report.epochs
    return {
        "sources": report.sources,
        "skipped": report.skipped,
        "only_first_documents": report.only_first,
        "left_out": [tally.document() for tally in report.left_out],
        "documents": facts.documents,
        "bytes": facts.text_bytes,
        "characters": found.characters,
        "tokens": found.tokens,
        "bytes_per_token": facts.text_bytes / found.tokens if found.tokens else None,
        "tokenizer": str(report.tokenizer) if report.tokenizer is not None else None,
        "fingerprint": facts.fingerprint,
        "lengths": [asdict(each) for each in found.lengths],
        "longest": {"origin": found.longest.origin, "text_bytes": found.longest.text_bytes},
        "equal": asdict(found.equal),
        "near": asdict(found.near) if found.near is not None else None,
        "leakage": report.leakage.document() if report.leakage is not None else None,
        "languages": found.languages,
        "samples": [asdict(each) for each in report.samples],
        "epochs": asdict(epochs) if epochs is not None else None,
    }
