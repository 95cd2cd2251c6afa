"""Remove a run: the files that training wrote, and its directory if nothing else is in it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmtrain.errors import UsageError
from llmtrain.train.checkpoint.names import entries_of, is_of_saving
from llmtrain.train.run_directory.directory import RUN_FILE, RunDirectory
from llmtrain.train.run_directory.running import is_in_training
from llmtrain.train.run_directory.saved_evaluation import EVALUATION_FILE
from llmtrain.train.run_directory.tags import TAGS_FILE
from llmtrain.train.run_directory.task_scores import TASKS_FILE

_WRITTEN_LATER = ("report.html", EVALUATION_FILE, TAGS_FILE, TASKS_FILE)


@dataclass(frozen=True, slots=True)
class RemovedRun:
    """A run that was removed, and what was left because it is no part of it."""

    run: Path
    freed_bytes: int
    left: tuple[str, ...]


def run_bytes(run: RunDirectory) -> int:
    """Return the bytes of the files that `remove_run` would remove."""
    files = [path for path in _files(run) if path.is_file()]
    for saved in _saves(run):
        files += [path for path in saved.rglob("*") if path.is_file()]
    return sum(path.lstat().st_size for path in files)


def require_not_in_training(run: RunDirectory) -> None:
    """Raise UsageError for a run that is being trained, and for links in place of its files."""
    run.require_own_files()
    if not run.read_record().get("result") and is_in_training(run):
        raise UsageError(f"{run.path} is being trained", hint="stop it first, then remove it")


def remove_run(run: RunDirectory) -> RemovedRun:
    """Remove a run. Raises UsageError if it is being trained, here or elsewhere.

    run.yaml goes last: a removal that was interrupted can be repeated.
    """
    require_not_in_training(run)
    freed_bytes = run_bytes(run)
    with run.claimed():
        for saved in _saves(run):
            shutil.rmtree(saved)
        with suppress(OSError):  # there is something else in it, or it is a link
            run.checkpoints.rmdir()
        for path in _files(run):
            path.unlink(missing_ok=True)
    left = tuple(sorted(path.name for path in run.path.iterdir()))
    if not left:
        with suppress(OSError):  # it is somebody's working directory, on Windows
            run.path.rmdir()
    return RemovedRun(run.path, freed_bytes, left)


def _saves(run: RunDirectory) -> list[Path]:
    """Return the directories of checkpoints: also of damaged ones, and what a crash left."""
    found = filter(is_of_saving, entries_of(run.checkpoints))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _files(run: RunDirectory) -> list[Path]:
    """Return the run's own files outside of its checkpoints, run.yaml last."""
    written_later = (run.path / name for name in _WRITTEN_LATER)
    return [run.metrics, run.samples, *written_later, run.path / RUN_FILE]
