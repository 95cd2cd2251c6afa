"""`llmtrain report-bug`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmtrain.cli import completion
from llmtrain.cli.output import Output, json_text


def report_bug(
    output: Output,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="The run that is concerned, if one is.",
            autocompletion=completion.run_names,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there after showing it."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write it without asking.")] = False,
) -> None:
    """Show what helps to find a bug: machine, versions, plan and numbers of a run, no text."""
    from llmtrain.documents.bug_report import ReportBug
    from llmtrain.engine.bug_report import LEFT_OUT, bug_report
    from llmtrain.errors import UsageError
    from llmtrain.files import write_text_atomically

    if out is not None and out.exists():
        raise UsageError(f"--out {out} exists already", hint="name a file that does not exist")
    if out is not None and not yes and not sys.stdin.isatty():
        raise UsageError(
            "--out writes the report once you have seen it, and standard input is no terminal",
            hint="--yes writes it without asking",
        )
    document = ReportBug.of_report(bug_report(run), LEFT_OUT)
    output.document(document)
    output.note(f"left out: {LEFT_OUT}")
    if out is None:
        output.note("read it before you attach it; --out FILE writes it")
    elif yes or typer.confirm(f"Write this to {out}?", err=True):
        write_text_atomically(out, json_text(document, indent=2))
        output.note(f"written: {out}")
