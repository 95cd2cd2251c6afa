"""Find out from a run's files which phase its training process is in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from llmtrain.profile.schema import EvalSection
from llmtrain.train.checkpoint.names import list_checkpoints, step_of
from llmtrain.train.run_directory.directory import RUN_FILE, RunDirectory
from llmtrain.untrusted import read_last_objects

Phase = Literal[
    "start-up",
    "data preparation",
    "resume",
    "step",
    "evaluation",
    "sampling",
    "save",
    "retention",
]


class Watch:
    """One session of a run, observed through its files. The run must log every step."""

    def __init__(self, run: RunDirectory, cache: Path, options: EvalSection, steps: int) -> None:
        """Record which files exist before the process is started."""
        self._run = run
        self._cache = cache
        self._options = options
        self._steps = steps
        self._is_resumed = run.exists
        self._record_before = _stamp(run.path / RUN_FILE)
        self._hidden_before = self._hidden()
        self._data_before = self._data()

    @property
    def step(self) -> int:
        """The last step that is logged or saved."""
        logged = next(read_last_objects(self._run.metrics), {}).get("step", 0)
        saved = [step_of(path) for path in list_checkpoints(self._run.checkpoints)]
        return max([int(logged), *saved])

    @property
    def has_checkpoint(self) -> bool:
        """True if there is a complete checkpoint."""
        return bool(list_checkpoints(self._run.checkpoints))

    def phase(self) -> Phase:
        """Return the phase that the process is in, or was in when it was killed."""
        if _stamp(self._run.path / RUN_FILE) == self._record_before:
            if self._is_resumed:
                return "resume"
            return "start-up" if self._data() == self._data_before else "data preparation"
        hidden = self._hidden() - self._hidden_before
        if hidden:
            is_removal = any(name.endswith(".removed") for name in hidden)
            return "retention" if is_removal else "save"
        return self._phase_of_training()

    def _phase_of_training(self) -> Phase:
        last = next(read_last_objects(self._run.metrics), {})
        step, options = int(last.get("step", 0)), self._options
        if step == 0:
            return "step"
        is_end = step == self._steps
        if "val_loss" not in last:
            return "evaluation" if is_end or step % options.every_steps == 0 else "step"
        every = options.sample_every_steps
        is_sampled = every is not None and (is_end or step % every == 0)
        if is_sampled and next(read_last_objects(self._run.samples), {}).get("step", 0) != step:
            return "sampling"
        return "step"

    def _hidden(self) -> set[str]:
        """Return the checkpoint directories that are being written or removed."""
        return {name for name in _names(self._run.checkpoints) if name.startswith(".")}

    def _data(self) -> set[tuple[str, str]]:
        parts = ("tokenizers", "shards")
        found = {(part, name) for part in parts for name in _names(self._cache / part)}
        return found | {(part, "") for part in parts if (self._cache / part).is_dir()}


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except OSError:
        return []


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when the file is rewritten."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
