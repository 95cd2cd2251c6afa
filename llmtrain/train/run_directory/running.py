"""Find the process that trains a run, from another process."""

from __future__ import annotations

from pathlib import Path

from llmtrain.errors import UsageError
from llmtrain.machine.process_identity import running_process
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.find import all_runs, find_run

Training = tuple[RunDirectory, int]


def run_in_training(text: str) -> Training:
    """Return the run that `text` names and the id of the root process that trains it.

    Raises UsageError if no process on this machine trains it.
    """
    run = find_run(text)
    pid = _process(run)
    if pid is None:
        identity = run.process()
        last = "its process" if identity is None else f"its last process, {identity.split()[0]},"
        raise UsageError(
            f"{run.path} is not being trained on this machine: {last} is not running",
            hint="llmtrain memory --pid PID shows any process",
        )
    return run, pid


def listed_runs(runs: Path) -> list[RunDirectory]:
    """Return the runs under `runs` that have saved a state or are being trained here."""
    return [
        run for run in all_runs(runs) if run.has_saved_state or run.is_lost or is_in_training(run)
    ]


def is_in_training(run: RunDirectory) -> bool:
    """Return True if a process of this machine trains the run."""
    return _process(run) is not None


def _process(run: RunDirectory) -> int | None:
    identity = run.process()
    return None if identity is None else running_process(identity)


def newest_in_training() -> Training | None:
    """Return the run under runs/ that is being trained on this machine and started last."""
    found = [(run, pid) for run in all_runs() if (pid := _process(run)) is not None]
    return max(found, key=lambda training: training[0].path.stat().st_mtime_ns, default=None)
