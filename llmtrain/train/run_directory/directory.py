"""The run directory and its files.

runs/<name>/
  run.yaml          request, decisions, machine and result
  metrics.jsonl     one line per logged step or evaluation
  samples.jsonl     text sampled during the run
  checkpoints/      see `llmtrain.train.checkpoint.format`
"""

from __future__ import annotations

import errno
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.files import named, write_pieces_atomically
from llmtrain.train.checkpoint.names import entries_of, has_saved_state, is_checkpoint_name
from llmtrain.train.run_directory.record import read_run_file, saved_step, write_run_file
from llmtrain.untrusted import (
    parse_json,
    read_last_objects,
    read_lines,
    refuse_link,
    unreadable,
)

RUN_FILE = "run.yaml"
LOCK_FILE = ".lock"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # another --out may not help


class RunDirectory:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"

    @property
    def exists(self) -> bool:
        """True if there is a run.yaml here."""
        return (self.path / RUN_FILE).is_file()

    @property
    def has_saved_state(self) -> bool:
        """True if a checkpoint was saved here; before that there is no run to resume."""
        return has_saved_state(self.checkpoints)

    def refuse_lost(self) -> None:
        """Raise LlmtrainError if run.yaml says that checkpoints were saved and none is left.

        Begun again in its place, a run would silently lose what its logs say it has done.
        """
        step = self._lost_step()
        if step is not None:
            raise LlmtrainError(
                f"run {self.path} was saved up to step {step}, and its checkpoints are gone: "
                f"none is in {self.checkpoints}",
                hint="put them back; or begin again with another --out, or after: "
                f"llmtrain runs rm {shlex.quote(str(self.path))}",
            )

    @property
    def is_lost(self) -> bool:
        """True if run.yaml says that checkpoints were saved, and none is left."""
        return self._lost_step() is not None

    def _lost_step(self) -> int | None:
        if not self.exists or self.has_saved_state:
            return None
        try:
            return saved_step(self.read_record())
        except UsageError:  # a record that cannot be used says nothing
            return None

    def require_own_files(self) -> None:
        """Refuse links and special files in place of the run's files. Raises UsageError."""
        files = (self.path / RUN_FILE, self.path / LOCK_FILE, self.metrics, self.samples)
        for path in (*files, self.checkpoints):
            refuse_link(path)
        for path in files:
            if path.exists() and not path.is_file():
                raise UsageError(
                    f"{path} is not an ordinary file", hint="remove it, or name another run"
                )
        for path in filter(is_checkpoint_name, entries_of(self.checkpoints)):
            refuse_link(path)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within the block, lock the directory for this process; create it. Raises UsageError.

        The system releases the lock when the process ends, however it ends. Directories that were
        created for it and are empty afterwards are removed. If an error ends the block before the
        first step, so are the files that were written in it. Where there is no run, files that one
        would write over are refused.
        """
        self.require_own_files()
        self._refuse_files_of_others()
        lock = FileLock(self.path / LOCK_FILE, timeout=0)
        directories = (self.checkpoints, self.path, *self.path.parents)
        created = [path for path in directories if not path.exists()]
        had_record = self.exists
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"{self.path} is being trained by another process",
                hint="wait for it, stop it, or choose another --out",
            ) from None
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise
            whose, hint = f"--out {self.path}", "--out DIRECTORY, where you may write"
            if had_record:  # it may have been named by --resume
                whose, hint = (
                    f"run {self.path}",
                    "make it writable, or continue a copy: --resume COPY",
                )
            raise UsageError(f"{whose} cannot be written: {error.strerror}", hint=hint) from None
        try:
            yield
        except BaseException:
            if not had_record and not self.has_saved_state and not self.metrics.exists():
                self._remove_files()
            raise
        finally:
            with suppress(OSError):  # on Windows the release removes it
                (self.path / LOCK_FILE).unlink(missing_ok=True)
            lock.release()
            for path in created:
                with suppress(OSError):  # it has files, or is gone
                    path.rmdir()

    def _remove_files(self) -> None:
        """Remove what a run wrote that has done no step."""
        with suppress(OSError):
            for path in (self.path / RUN_FILE, self.metrics, self.samples):
                path.unlink(missing_ok=True)

    def _refuse_files_of_others(self) -> None:
        """Raise UsageError for a run's files without a run: they may be all that somebody has."""
        if self.exists or self.has_saved_state:
            return
        for path in (self.metrics, self.samples):
            if path.exists():
                raise UsageError(
                    f"{path} is there, and {self.path} is no run: it has no {RUN_FILE}",
                    hint="choose another --out, or move the file away",
                )

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write `record` to run.yaml. Raises UsageError if it could not be read again."""
        write_run_file(self.path / RUN_FILE, record)

    def read_record(self) -> dict[str, Any]:
        """Read run.yaml. Raises UsageError."""
        self.require_own_files()
        return read_run_file(self.path / RUN_FILE)

    def launcher(self) -> str | None:
        """Return the identity of the last session's torchrun; None where there was none."""
        return self._of_last_session("launcher")

    def process(self) -> str | None:
        """Return the identity of the last session's process, which may have ended."""
        return self._of_last_session("process")

    def _of_last_session(self, name: str) -> str | None:
        try:
            found = self.read_record()["sessions"][-1].get(name)
        except (UsageError, LookupError, TypeError, AttributeError):
            return None
        return None if found is None else str(found)

    def append(self, path: Path, line: Mapping[str, Any]) -> None:
        """Append a line of JSON to `path`, without buffering.

        Raises LlmtrainError if the run directory is gone.
        """
        try:
            with named(path), path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except FileNotFoundError:
            raise LlmtrainError(
                f"{self.path} was moved or removed while the run was training",
                hint=f"where it is now, as in: llmtrain train --out {self.path}-moved "
                "--resume auto; it continues from its last checkpoint",
            ) from None

    def cut_after(self, step: int) -> None:
        """Remove metrics and samples of later steps: the run continues from `step`.

        At step 0 nothing remains: what is there is of a run that saved no state.
        """
        for path in (self.metrics, self.samples):
            if path.is_file():
                lines = (
                    line + b"\n" for line, value in _records(path) if 0 < value["step"] <= step
                )
                write_pieces_atomically(path, lines)

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield each complete line of metrics.jsonl; `step` is a number."""
        return (value for _, value in _records(self.metrics))

    def last_step_line(self) -> dict[str, Any] | None:
        """Return the newest step in metrics.jsonl."""
        return next((v for v in read_last_objects(self.metrics) if "loss" in v), None)

    def read_samples(self) -> Iterator[dict[str, Any]]:
        """Yield each complete line of samples.jsonl; `step` is a number."""
        return (value for _, value in _records(self.samples))


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield every valid line and its value; nothing if the file does not exist."""
    try:
        for line in read_lines(path):
            value = _parsed(line)
            if isinstance(value, dict) and type(value.setdefault("step", 0)) is int:
                yield line, value
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(path, error) from error


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line, allow_nan=True)
    except ValueError:
        return None  # the line that was written when the process was killed
