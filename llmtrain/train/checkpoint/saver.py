"""When a run is saved, and saving beside the training."""

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
from llmtrain.profile.schema import CheckpointSection
from llmtrain.train.checkpoint.format import Checkpoint, SavedState, step_of
from llmtrain.train.checkpoint.writing import (
    Written,
    on_cpu,
    remove_old,
    seal_checkpoint,
    set_aside_given_up,
    write_checkpoint,
)
from llmtrain.train.events import Saved
from llmtrain.units import format_bytes

# What a crash loses, or what saving costs, whichever is more.
_LOST_S = 5 * 60.0
_SPENT_SHARE = 0.02
_BESIDE_THE_TENSORS_BYTES = 4 << 20  # tokenizer, configuration, state, manifest


class Saver:
    """Saves one checkpoint at a time, and thins out older ones after it.

    Training stops only while the tensors are copied: those in this process's memory into files,
    which the system's cache holds, and those of a GPU into memory. Hashing, waiting for the disk
    and reading back happen in a thread; `poll` says what came of it.
    """

    def __init__(
        self, directory: Path, options: CheckpointSection, tell: Callable[[Saved], None]
    ) -> None:
        self._directory = directory
        self._options = options
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._sealing: Future[Path] | None = None
        self._saved_at_s = time.monotonic()
        self._paused_s = 0.0
        self.newest: Path | None = None
        self.took_s: float | None = None  # the last one, from its beginning to its name

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`: as the profile says, or so that little is lost or spent."""
        if self._options.every_steps is not None:
            return step % self._options.every_steps == 0
        if self._sealing is not None:
            return False
        every_s = max(_LOST_S, self._paused_s / _SPENT_SHARE)
        if self._options.every_minutes is not None:
            every_s = 60 * self._options.every_minutes
        return time.monotonic() - self._saved_at_s >= every_s

    def save(self, checkpoint: Checkpoint, *, in_background: bool) -> None:
        """The checkpoint is durable, or will be; tensors may change. Raises LlmtrainError."""
        self.finish()
        begun_s = self._saved_at_s = time.monotonic()
        step = checkpoint.state.step
        require_room(self._directory, tensor_bytes(checkpoint), f"the checkpoint of step {step}")
        if _is_in_memory(checkpoint):
            with _explained(step):
                written = write_checkpoint(self._directory, checkpoint)
            write: Callable[[], Written] = lambda: written  # noqa: E731
        else:
            write = partial(write_checkpoint, self._directory, on_cpu(checkpoint))
        self._sealing = self._thread.submit(self._seal, write, checkpoint.state, begun_s)
        self._paused_s = time.monotonic() - begun_s
        if not in_background:
            self.finish()

    def poll(self) -> None:
        """What became of a save is told, if it is over. Raises LlmtrainError where it failed."""
        if self._sealing is not None and self._sealing.done():
            self.finish()

    def finish(self) -> None:
        """No save is under way. Raises LlmtrainError where one failed."""
        if self._sealing is None:
            return
        sealing, self._sealing = self._sealing, None
        self.newest = sealing.result()
        self._tell(Saved(step_of(self.newest), self.newest))

    def close(self) -> None:
        """The thread is gone; a save that was under way is still finished."""
        self._thread.shutdown(wait=True)

    def _seal(self, write: Callable[[], Written], state: SavedState, begun_s: float) -> Path:
        keep_step = state.best_step if self._options.keep_best else None
        with _explained(state.step):
            path = seal_checkpoint(write())
            set_aside_given_up(self._directory, state)
            remove_old(self._directory, self._options.keep_last, keep_step)
        self.took_s = time.monotonic() - begun_s
        return path


def tensor_bytes(checkpoint: Checkpoint) -> int:
    """What weights and optimizer state take."""
    tensors = (*checkpoint.weights.values(), *checkpoint.optimizer.values())
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def require_room(directory: Path, tensors_bytes: int, what: str) -> None:
    """The disk of `directory` has room for a checkpoint. Raises LlmtrainError with the figures."""
    needed, free = tensors_bytes + _BESIDE_THE_TENSORS_BYTES, free_bytes(directory)
    if free < needed:
        raise LlmtrainError(
            f"{what} needs {format_bytes(needed)} in {directory}, {format_bytes(free)} are free",
            hint="make room on that disk, or begin a run on another: --out DIRECTORY",
        )


@contextmanager
def _explained(step: int) -> Iterator[None]:
    """What the system or the file format refuses is told as a checkpoint that was not written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise LlmtrainError(
            f"the checkpoint of step {step} could not be written: {error}",
            hint="those before it are whole; --resume auto goes on from the newest",
        ) from error


def _is_in_memory(checkpoint: Checkpoint) -> bool:
    return all(tensor.device.type == "cpu" for tensor in checkpoint.weights.values())
