"""When a run is saved, and saving in the background."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from llmtrain.errors import LlmtrainError
from llmtrain.files import free_bytes
from llmtrain.machine.allocator import return_free_memory
from llmtrain.machine.out_of_memory import MEMORY_ERRORS, out_of_memory
from llmtrain.profile.schema import CheckpointSection
from llmtrain.train.checkpoint.format import Checkpoint, SavedState
from llmtrain.train.checkpoint.names import step_of
from llmtrain.train.checkpoint.writing import (
    Written,
    finalize_checkpoint,
    on_cpu,
    remove_old,
    set_aside_superseded,
    write_checkpoint,
)
from llmtrain.train.events import Saved
from llmtrain.units import format_bytes
from llmtrain.untrusted import problem_of

# Save as often as either allows: a crash loses 5 minutes at most, saving costs 2% of the time.
LOST_S = 5 * 60.0
_SPENT_SHARE = 0.02
_OTHER_FILES_BYTES = 4 << 20  # tokenizer, configuration, state, manifest


class Saver:
    """Saves one checkpoint at a time, and removes older ones after it.

    Training pauses only while the tensors are copied: from this process's memory into files in the
    system's cache, or from a GPU into memory. A thread then hashes, syncs and reads back.
    """

    def __init__(
        self, directory: Path, options: CheckpointSection, on_saved: Callable[[Saved], None]
    ) -> None:
        self._directory = directory
        self._options = options
        self._on_saved = on_saved
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._finalizing: Future[Path] | None = None
        self._saved_at_s = time.monotonic()
        self._paused_s = 0.0
        self._ran_short = False  # the last save had too little memory, and is to be repeated
        self.newest: Path | None = None
        self.elapsed_s: float | None = None  # of the last save, until the checkpoint was in place

    def is_due(self, step: int, steps: int = 1) -> bool:
        """Return whether to save after `step`: as the profile says, or by time lost and spent.

        It is asked after every `steps` steps.
        A save that had too little memory is due again.
        """
        if self._ran_short:
            return True
        if self._options.every_steps is not None:
            return passes_multiple(step, steps, self._options.every_steps)
        if self._finalizing is not None:
            return False
        every_s = max(self._lost_s, self._paused_s / _SPENT_SHARE)
        if self._options.every_minutes is not None:
            every_s = 60 * self._options.every_minutes
        return time.monotonic() - self._saved_at_s >= every_s

    @property
    def _lost_s(self) -> float:
        """How much of the training a crash may lose, where saving is cheap."""
        return LOST_S

    def save(self, checkpoint: Checkpoint, *, in_background: bool) -> None:
        """Save; afterwards the tensors may change. Raises LlmtrainError, also for an earlier save.

        The checkpoint is durable on return, or with `in_background` once `poll` reports it. If
        memory runs out, free memory is returned to the system and the save repeated in this thread.
        """
        self.finish()
        in_background &= not self._ran_short
        self._ran_short = False
        started_s = self._saved_at_s = time.monotonic()
        step = checkpoint.state.step
        require_room(self._directory, tensor_bytes(checkpoint), f"the checkpoint of step {step}")
        with self._shortage_noted():
            self._start(checkpoint, started_s)
        self._paused_s = time.monotonic() - started_s
        if not in_background:
            self.finish()
        if self._ran_short:
            return_free_memory()
            write = partial(write_checkpoint, self._directory, on_cpu(checkpoint))
            self._report(self._finalize(write, checkpoint.state, started_s))
            self._ran_short = False

    def _start(self, checkpoint: Checkpoint, started_s: float) -> None:
        """Copy the tensors and let the thread do the rest."""
        if _is_in_memory(checkpoint):
            what = f"the checkpoint of step {checkpoint.state.step} could not be written"
            with write_errors_mapped(what):
                written = write_checkpoint(self._directory, checkpoint)
            write: Callable[[], Written] = lambda: written  # noqa: E731
        else:
            write = partial(write_checkpoint, self._directory, on_cpu(checkpoint))
        self._finalizing = self._thread.submit(self._finalize, write, checkpoint.state, started_s)

    @contextmanager
    def _shortage_noted(self) -> Iterator[None]:
        """Note that memory ran out within the block, instead of raising."""
        try:
            yield
        except MEMORY_ERRORS as error:
            if out_of_memory(error) is None:
                raise
            self._ran_short = True

    def poll(self) -> None:
        """Report a background save that is complete. Raises LlmtrainError if it failed."""
        if self._finalizing is not None and self._finalizing.done():
            self.finish()

    def finish(self) -> None:
        """Wait for a save in progress and report it. Raises LlmtrainError if it failed.

        One that had too little memory is repeated after the next step.
        """
        if self._finalizing is None:
            return
        saving, self._finalizing = self._finalizing, None
        with self._shortage_noted():
            self._report(saving.result())

    def _report(self, path: Path) -> None:
        self.newest = path
        self._on_saved(Saved(step_of(path), path))

    def close(self) -> None:
        """End the thread after a save in progress."""
        self._thread.shutdown(wait=True)

    def _finalize(self, write: Callable[[], Written], state: SavedState, started_s: float) -> Path:
        """Write and finalize the checkpoint, then remove older ones; runs in the thread."""
        with write_errors_mapped(f"the checkpoint of step {state.step} could not be written"):
            path = finalize_checkpoint(write())
        self._remove_old(path, state)
        self.elapsed_s = time.monotonic() - started_s
        return path

    def _remove_old(self, newest: Path, state: SavedState) -> None:
        keep_step = state.best_step if self._options.keep_best else None
        with write_errors_mapped(f"older checkpoints than {newest.name} could not be removed"):
            set_aside_superseded(self._directory, state)
            remove_old(self._directory, self._options.keep_last, keep_step)


def passes_multiple(step: int, steps: int, every: int) -> bool:
    """Return whether one of the last `steps` steps up to `step` is a multiple of `every`."""
    return step // every > (step - steps) // every


def tensor_bytes(checkpoint: Checkpoint) -> int:
    """Return the size of weights and optimizer state."""
    tensors = (*checkpoint.weights.values(), *checkpoint.optimizer.values())
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def require_room(directory: Path, tensors_bytes: int, what: str) -> None:
    """Raise LlmtrainError if the disk of `directory` has no room for a checkpoint."""
    needed, free = tensors_bytes + _OTHER_FILES_BYTES, free_bytes(directory)
    if free < needed:
        raise LlmtrainError(
            f"{what} needs {format_bytes(needed)} in {directory}, {format_bytes(free)} are free",
            hint="free space on that disk, or start a run on another: --out DIRECTORY",
        )


@contextmanager
def write_errors_mapped(what: str) -> Iterator[None]:
    """Map errors of the system and of safetensors to an LlmtrainError that begins with `what`.

    Those of memory stay what they are.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if out_of_memory(error) is not None:
            raise
        raise LlmtrainError(
            f"{what}: {_problem(error)}",
            hint="earlier checkpoints are intact; --resume auto continues from the newest",
        ) from error


def _problem(error: OSError | SafetensorError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}{problem_of(error)}"


def _is_in_memory(checkpoint: Checkpoint) -> bool:
    return all(tensor.device.type == "cpu" for tensor in checkpoint.weights.values())
