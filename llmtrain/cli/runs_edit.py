"""`llmtrain runs tag|rm`: change what is kept of runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.errors import UsageError
from llmtrain.units import counted, format_bytes


def tag(
    output: Output,
    run: options.Run,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="TAG...", help="Words to attach to the run.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="A tag to take away. Repeatable.")
    ] = None,
) -> None:
    """Attach tags to a run; without any, show those that it has."""
    from llmtrain.documents.runs import RunsTag
    from llmtrain.train.run_directory.find import find_run
    from llmtrain.train.run_directory.tags import change_tags

    found = find_run(run)
    after = change_tags(found, tags or [], remove or [])
    output.answer(RunsTag.of(run=found.path, tags=after), after, "" if after else "no tags")


def rm(
    output: Output,
    runs: options.Runs,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> int:
    """Remove runs with their checkpoints; files that training did not write are left."""
    from llmtrain.documents.runs import RemovedRun, RunsRm
    from llmtrain.train.run_directory.find import find_run
    from llmtrain.train.run_directory.remove import (
        remove_run,
        require_not_in_training,
        run_bytes,
    )

    found = {run.path: run for run in map(find_run, runs)}
    for run in found.values():
        require_not_in_training(run)
    size = format_bytes(sum(map(run_bytes, found.values())))
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"{counted(len(found), 'run')} of {size} would be removed", hint="add --yes"
            )
        names = ", ".join(map(str, found))
        if not typer.confirm(f"Remove {names} with all checkpoints, {size}?", err=True):
            output.answer(RunsRm.of(removed=[], freed_bytes=0), (), "nothing was removed")
            return 130
    removed = [RemovedRun.of(remove_run(run)) for run in found.values()]
    if not output.json:
        for each in removed:
            if each.left:
                output.warning(f"{each.run} still holds {', '.join(each.left)}")
    document = RunsRm.of(removed=removed, freed_bytes=sum(each.freed_bytes for each in removed))
    note = f"{counted(len(removed), 'run')} removed, {format_bytes(document.freed_bytes)}"
    output.answer(document, [each.run for each in removed], note)
    return 0
