"""`llmtrain data inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.engine.inspect_data import DataReport
    from llmtrain.prepare.context import PrepareContext
    from llmtrain.profile.schema import Profile


def inspect(
    output: Output,
    data: options.Data = None,
    profile: options.Profile = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Count tokens with it; default: the profile's."),
    ] = None,
    text_field: options.ProfileTextField = None,
    set_: options.Set = None,
    chat: Annotated[
        str | None,
        typer.Option(
            "--chat",
            metavar="MODEL",
            help="Rows are conversations: show one by the chat template of this run or model, with "
            "what carries loss, and check all.",
        ),
    ] = None,
    sample: Annotated[
        int | None,
        options.whole_number("--sample", "Inspect only so many documents.", 1),
    ] = None,
) -> None:
    """Show what is in a text: lengths, tokens, near copies, leakage, languages, samples.

    Finding near copies takes 0.6 GB of memory per million documents.
    """
    from llmtrain.cli.progress import watching
    from llmtrain.engine.inspect_data import inspect_data
    from llmtrain.machine.probe import read_cpu
    from llmtrain.prepare.context import PrepareContext
    from llmtrain.profile.load import load_profile
    from llmtrain.train.signals import stop_on_signals

    flags = options.flag_settings(
        data_sources=data, data_text_field=text_field, data_tokenizer=tokenizer
    )
    if chat is not None:
        if tokenizer is not None:
            raise UsageError(
                "--chat counts tokens with the model's tokenizer", hint="leave --tokenizer out"
            )
        flags |= options.flag_settings(data_rows="chat")
    default = None if chat is None else "finetune-cpu"
    loaded = load_profile(profile or default, assignments=set_ or [], flags=flags)
    with stop_on_signals() as stop, watching(output) as observe:
        work = PrepareContext(read_cpu().usable_cores, observe, stop.check)
        if chat is not None:
            _show_chat(output, loaded.profile, chat, work, sample)
            return
        report = inspect_data(
            loaded.profile, work, only_first=sample, is_for_profile=profile is not None
        )
    _show(output, report)


def _show_chat(
    output: Output, profile: Profile, model: str, work: PrepareContext, sample: int | None
) -> None:
    """Show a conversation by the model's chat template, and what all of them are."""
    from llmtrain.cli.data.chat_report import chat_parts
    from llmtrain.documents.data import DataInspectChat
    from llmtrain.engine.inspect_chat import inspect_chat

    answer = DataInspectChat.of(inspect_chat(profile, model, work, only_first=sample))
    output.answer(answer, chat_parts(answer))


def _show(output: Output, report: DataReport) -> None:
    """Show what is in a text, as a document or as tables."""
    if output.json:
        from llmtrain.documents.data import DataInspect

        found, facts = report.found, report.found.facts
        document = DataInspect.of(
            report,
            found,
            facts,
            only_first_documents=report.only_first,
            bytes=facts.text_bytes,
            bytes_per_token=facts.text_bytes / found.tokens if found.tokens else None,
        )
        output.document(document)
        return
    from llmtrain.cli.data.report import show_report

    show_report(output, report)
