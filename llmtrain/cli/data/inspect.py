"""`llmtrain data inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from llmtrain.cli.command import command
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


def register(group: typer.Typer) -> None:
    """Add the command `inspect` to `group`."""
    command(group, "inspect", "llmtrain data inspect --data notes/")(inspect)


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
        int | None, whole_number("--sample", "Inspect only so many documents, the first.", 1)
    ] = None,
    json: JsonOption = False,
) -> int:
    """Show what is in a text: lengths, tokens, near copies, leakage, languages, samples.

    Finding near copies takes 0.6 GB of memory per million documents.
    """
    from llmtrain.cli.progress import watching
    from llmtrain.documents.inspection import DataInspect
    from llmtrain.engine.inspect_data import inspect_data
    from llmtrain.prepare.context import PrepareContext
    from llmtrain.profile.load import load_profile
    from llmtrain.train.signals import stop_on_signals

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
        output.document(DataInspect.of_report(report))
        return 0
    from llmtrain.cli.data.report import show_report

    show_report(output, report)
    return 0


def _threads() -> int:
    from llmtrain.machine.probe import read_cpu

    return read_cpu().usable_cores
