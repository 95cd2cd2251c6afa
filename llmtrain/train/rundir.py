"""The run directory: what is where, and how a run is found by what a user types.

runs/<name>/
  run.yaml          what was asked, decided and used
  metrics.jsonl     one line a logged step or evaluation
  samples.jsonl     text drawn as the run went
  checkpoints/      see `llmtrain.train.checkpoint`
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from llmtrain.errors import UsageError
from llmtrain.files import write_text_atomically
from llmtrain.train.checkpoint import list_checkpoints

RUNS = Path("runs")
RUN_FILE = "run.yaml"
LOCK_FILE = ".lock"
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # another --out may not help


class _Dumper(yaml.SafeDumper):
    """Safe YAML that writes a value out each time it occurs."""

    def ignore_aliases(self, data: object) -> bool:
        return True


class RunDirectory:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / RUN_FILE).is_file()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """The directory exists, can be written to, and is this process's alone. Raises UsageError.

        The system gives the lock back when the process ends, however it ends. A directory in
        which nothing was put is gone afterwards.
        """
        lock = FileLock(self.path / LOCK_FILE, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"{self.path} is being trained by another process",
                hint="wait for it or stop it, or choose another --out",
            ) from None
        except OSError as error:
            if error.errno in _OF_THE_DISK:
                raise
            raise UsageError(
                f"--out {self.path} cannot be written: {error.strerror}", hint="--out runs/mine"
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # Windows leaves this to the release
                (self.path / LOCK_FILE).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):
                self.path.rmdir()

    def write_record(self, record: Mapping[str, Any]) -> None:
        """run.yaml holds `record`."""
        text = yaml.dump(
            dict(record), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
        )
        write_text_atomically(self.path / RUN_FILE, text)

    def read_record(self) -> dict[str, Any]:
        """What run.yaml holds. Raises UsageError."""
        path = self.path / RUN_FILE
        try:
            record = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("profile"), dict):
            raise UsageError(f"{path} is not the record of a run")
        return record

    def profile_name(self) -> str | None:
        """Of the profile that is trained; None where run.yaml cannot be read."""
        try:
            name = self.read_record()["profile"].get("name")
        except UsageError:
            return None
        return str(name)

    def append(self, path: Path, line: Mapping[str, Any]) -> None:
        """One more line of JSON in `path`, handed to the system at once."""
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def cut_after(self, step: int) -> None:
        """Metrics and samples of steps past the checkpoint that a resume goes on from are gone."""
        for path in (self.metrics, self.samples):
            if path.is_file():
                kept = [line for line in _json_lines(path) if line.get("step", 0) <= step]
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
                write_text_atomically(path, text)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl that are whole."""
        return _json_lines(self.metrics) if self.metrics.is_file() else []

    def read_samples(self) -> list[dict[str, Any]]:
        """All lines of samples.jsonl that are whole."""
        return _json_lines(self.samples) if self.samples.is_file() else []


def new_run_path(profile_name: str, now: datetime, runs: Path = RUNS) -> Path:
    """`runs/<profile>-<date>-<time>`, with a number behind where that is taken."""
    base = runs / f"{profile_name}-{now:%Y%m%d-%H%M%S}"
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def newest_run(profile_name: str, runs: Path = RUNS) -> Path | None:
    """The run of that profile that was written to last."""
    own = [run.path for run in all_runs(runs) if run.profile_name() == profile_name]
    return max(own, key=lambda path: (path / RUN_FILE).stat().st_mtime_ns, default=None)


def all_runs(runs: Path = RUNS) -> list[RunDirectory]:
    """Every run directly under `runs`, by name."""
    if not runs.is_dir():
        return []
    return [run for path in sorted(runs.iterdir()) if (run := RunDirectory(path)).exists]


def find_run(text: str) -> RunDirectory:
    """The run that a directory or a name under runs/ means. Raises UsageError."""
    for path in (Path(text), RUNS / text):
        if RunDirectory(path).exists:
            return RunDirectory(path)
    checkpoint = named_checkpoint(text)
    if checkpoint is None or not RunDirectory(checkpoint.parent.parent).exists:
        raise _unknown_run(text)
    return RunDirectory(checkpoint.parent.parent)


def named_checkpoint(text: str) -> Path | None:
    """The checkpoint directory of a run that `text` names, if it names one; whole or not."""
    for path in (Path(text), RUNS / text):
        if path.parent.name == "checkpoints" and path.is_dir():
            return path
    return None


def find_checkpoints(text: str) -> list[Path]:
    """The checkpoints that RUN means, newest last: one directory's, or a run's.

    Raises UsageError for an unknown run and for one without a checkpoint.
    """
    for path in (Path(text), RUNS / text):
        if (path / "state.json").is_file() or (path / "manifest.json").is_file():
            return [path]
        if RunDirectory(path).exists or (path / "checkpoints").is_dir():
            found = list_checkpoints(path / "checkpoints")
            if not found:
                raise UsageError(
                    f"run {path} has no checkpoint yet",
                    hint=f"llmtrain train --out {path} --resume auto",
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


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(text)
        except ValueError:
            continue  # the line that was being written when the process was killed
        if isinstance(value, dict):
            lines.append(value)
    return lines
