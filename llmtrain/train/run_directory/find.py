"""Find a run or a checkpoint by what a user types, and a directory for a new run."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.train.checkpoint.names import entries_of, list_checkpoints, refuse_only_damaged
from llmtrain.train.run_directory.directory import RUN_FILE, RunDirectory

RUNS = Path("runs")


def new_run_path(profile_name: str, now: datetime, runs: Path = RUNS) -> Path:
    """Return `runs/<profile>-<date>-<time>`, with a number appended if that exists."""
    base = runs / f"{profile_name}-{now:%Y%m%d-%H%M%S}"
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def newest_run(profile_name: str, runs: Path = RUNS) -> Path | None:
    """Return the run of that profile that was written to last; None where there is none.

    Raises UsageError for a newer run.yaml that cannot be read: it may be of that profile.
    """
    saved = [run for run in all_runs(runs) if run.has_saved_state or run.is_lost]
    saved.sort(key=lambda run: (run.path / RUN_FILE).stat().st_mtime_ns, reverse=True)
    for run in saved:
        try:
            name = run.read_record()["profile"].get("name")
        except LlmtrainError as error:
            raise type(error)(
                error.message,
                hint="name the run to resume: --resume RUN; or move that directory away",
            ) from None
        if name == profile_name:
            return run.path
    return None


def all_runs(runs: Path = RUNS) -> list[RunDirectory]:
    """Return every run directly under `runs`, by name."""
    return [run for path in sorted(entries_of(runs)) if (run := RunDirectory(path)).exists]


def find_run(text: str) -> RunDirectory:
    """Return the run with this directory, name under runs/ or checkpoint. Raises UsageError."""
    for path in (Path(text), RUNS / text):
        if RunDirectory(path).exists:
            return _own(RunDirectory(path))
    checkpoint = named_checkpoint(text)
    if checkpoint is None or not RunDirectory(checkpoint.parent.parent).exists:
        raise _unknown_run(text)
    return _own(RunDirectory(checkpoint.parent.parent))


def _own(run: RunDirectory) -> RunDirectory:
    run.require_own_files()
    return run


def named_checkpoint(text: str) -> Path | None:
    """Return the checkpoint directory that `text` names, if it names one; unverified."""
    for path in (Path(text), RUNS / text):
        if path.parent.name == "checkpoints" and path.is_dir():
            return path
    return None


def find_checkpoints(text: str) -> list[Path]:
    """Return the checkpoint that `text` names, or all of the run that it names, newest last.

    Raises UsageError for an unknown run and for one without a checkpoint, and LlmtrainError where
    all were set aside as damaged.
    """
    for path in (Path(text), RUNS / text):
        if (path / "state.json").is_file() or (path / "manifest.json").is_file():
            return [path]
        if RunDirectory(path).exists or (path / "checkpoints").is_dir():
            RunDirectory(path).require_own_files()
            found = list_checkpoints(path / "checkpoints")
            refuse_only_damaged(path / "checkpoints")
            RunDirectory(path).refuse_lost()
            if not found:
                raise UsageError(
                    f"run {path} has no checkpoint",
                    hint=f"llmtrain train --out {shlex.quote(str(path))} --resume auto",
                )
            return found
    raise _unknown_run(text)


def _unknown_run(text: str) -> UsageError:
    import difflib

    close = difflib.get_close_matches(text, [run.path.name for run in all_runs()], n=1)
    return UsageError(
        f"unknown run {text!r}: neither a run directory, nor a checkpoint, nor a name under runs/",
        hint=f"did you mean {close[0]}?" if close else "llmtrain runs list",
    )
