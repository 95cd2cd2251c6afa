"""Save a checkpoint of which several ranks have a part: each writes its own, rank 0 completes it.

Ranks have parts of a sharded model, or the states of their own that rounds of local steps leave.
Where each machine has a replica, those of the first machine save.

Rank 0 makes the hidden directory. Each rank then writes, syncs and reads back its files in a thread
and leaves what they are in the store of the launch. Once all have, rank 0 writes the manifest and
renames: a rank that ends before that leaves a hidden directory and the checkpoints there were.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter
from torch.distributed import DistError

from llmtrain.errors import LlmtrainError, PeerLostError
from llmtrain.machine.allocator import return_free_memory
from llmtrain.machine.out_of_memory import MEMORY_ERRORS, out_of_memory
from llmtrain.profile.schema import CheckpointSection
from llmtrain.train.checkpoint.format import Checkpoint, SavedState
from llmtrain.train.checkpoint.names import checkpoint_name
from llmtrain.train.checkpoint.saver import (
    LOST_S,
    Saver,
    require_room,
    tensor_bytes,
    write_errors_mapped,
)
from llmtrain.train.checkpoint.writing import (
    PartFiles,
    Written,
    begin_parts,
    finalize_parts,
    write_part,
)
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Saved

_POLL_EVERY_S = 0.02
_WRITING_SHARE = 0.05  # of the time, in which a save of every round may be under way
_GRACE_S = 5.0  # for the other ranks' files after the run ended by an error
_HINT = "earlier checkpoints are intact; --resume auto continues from the newest"
_WRITTEN, _FAILED, _SHORT = "written", "failed", "short"  # the first word of a message


class PartSaver(Saver):
    """Saves one checkpoint at a time, with the first ranks. Each has one and calls it alike.

    `save` is given what this rank owns, in memory that training does not change.
    """

    def __init__(
        self,
        directory: Path,
        options: CheckpointSection,
        on_saved: Callable[[Saved], None],
        world: World,
        limit_s: float,
        *,
        ranks: int,
        waiting_s: Callable[[], float] | None = None,
    ) -> None:
        """`ranks`: how many have parts; `limit_s`: how long rank 0 waits for the others' files.

        `waiting_s`: a save is due after every round, so that a lost rank costs no more than one,
        and waits so long for an exchange; None: there are no rounds.
        """
        super().__init__(directory, options, on_saved)
        assert world.store is not None, "a sharded model has several ranks"
        self._world, self._store, self._limit_s = world, world.store, limit_s
        self._ranks, self._waiting_s = ranks, waiting_s
        self._number = 0
        self._closing = threading.Event()

    @property
    def _lost_s(self) -> float:
        if self._waiting_s is None:
            return LOST_S
        return min(LOST_S, ((self.elapsed_s or 0.0) + self._waiting_s()) / _WRITING_SHARE)

    def save(self, checkpoint: Checkpoint, *, in_background: bool) -> None:
        """Save; durable on return, or with `in_background` once `poll` reports it.

        Raises LlmtrainError, also for an earlier save. If memory runs out on any rank, all return
        free memory to the system and repeat the save.
        """
        self.finish()
        self._start_saving(checkpoint)
        if in_background or self._is_whole():
            return
        return_free_memory()
        self._start_saving(checkpoint)
        if not self._is_whole():
            what = _what(checkpoint.state)
            raise LlmtrainError(f"{what}: memory ran out, also when it was repeated", hint=_HINT)

    def _start_saving(self, checkpoint: Checkpoint) -> None:
        """Begin a checkpoint with the other ranks, and let the thread write this rank's part."""
        self._ran_short = False
        started_s = self._saved_at_s = time.monotonic()
        self._number += 1
        step = checkpoint.state.step

        def begin() -> str:
            what = f"the checkpoint of step {step}"
            require_room(self._directory, self._ranks * tensor_bytes(checkpoint), what)
            with write_errors_mapped(_what(checkpoint.state)):
                return begin_parts(self._directory, step).hidden.name

        name = self._world.broadcast_from_main(f"save {self._number}", begin)
        written = Written(self._directory / name, self._directory / checkpoint_name(step))
        work = self._complete if self._world.is_main else self._write
        self._finalizing = self._thread.submit(work, written, checkpoint, self._number, started_s)
        self._paused_s = time.monotonic() - started_s

    def _is_whole(self) -> bool:
        """Wait for the save and return, alike on every rank, whether rank 0 could complete it.

        Raises LlmtrainError if it failed otherwise than for lack of memory.
        """

        def outcome() -> str:
            self.finish()
            return _SHORT if self._ran_short else _WRITTEN

        if not self._world.is_main:
            self.finish()
        return self._world.broadcast_from_main(f"saved {self._number}", outcome) == _WRITTEN

    def close(self) -> None:
        """End the thread after a save in progress, which waits a little for other ranks."""
        self._closing.set()
        super().close()

    def _report(self, path: Path) -> None:
        if self._world.is_main:
            super()._report(path)
        else:
            self.newest = path

    def _write(
        self, written: Written, checkpoint: Checkpoint, number: int, started_s: float
    ) -> Path:
        """Write this rank's part and report it to rank 0; runs in the thread."""
        rank, ranks = self._world.rank, self._ranks
        with self._failure_reported(number), write_errors_mapped(_what(checkpoint.state)):
            part = write_part(written, checkpoint, rank + 1, ranks)
        message = TypeAdapter(PartFiles).dump_json(part).decode()
        self._store.set(_key(number, rank), f"{_WRITTEN} {message}")
        self.elapsed_s = time.monotonic() - started_s
        return written.final

    def _complete(
        self, written: Written, checkpoint: Checkpoint, number: int, started_s: float
    ) -> Path:
        """Write rank 0's part, wait for the others', and complete the checkpoint."""
        try:
            with write_errors_mapped(_what(checkpoint.state)):
                with self._others_awaited(number) as messages:
                    own = write_part(written, checkpoint, 1, self._ranks)
                others = [_part_of(rank, message) for rank, message in messages.items()]
                path = finalize_parts(written, checkpoint, [own, *others])
        finally:
            shutil.rmtree(written.hidden, ignore_errors=True)
        self._remove_old(path, checkpoint.state)
        self.elapsed_s = time.monotonic() - started_s
        return path

    @contextmanager
    def _others_awaited(self, number: int) -> Iterator[dict[int, str]]:
        """Fill in the other ranks' messages after the block, also where it fails.

        Until then they write into the hidden directory, which a failure removes.
        """
        messages: dict[int, str] = {}
        try:
            yield messages
        finally:
            messages |= {rank: self._message_of(rank, number) for rank in range(1, self._ranks)}

    @contextmanager
    def _failure_reported(self, number: int) -> Iterator[None]:
        """Leave an error of the block in the store, so that rank 0 does not wait."""
        try:
            yield
        except LlmtrainError as error:
            self._report_failure(number, _FAILED, error)
            raise
        except MEMORY_ERRORS as error:
            is_short = out_of_memory(error) is not None
            self._report_failure(number, _SHORT if is_short else _FAILED, error)
            raise

    def _report_failure(self, number: int, state: str, error: BaseException) -> None:
        self._store.set(_key(number, self._world.rank), f"{state} {error}")

    def _message_of(self, rank: int, number: int) -> str:
        key, end_s = _key(number, rank), time.monotonic() + self._limit_s
        try:
            while not self._store.check([key]):
                if self._closing.is_set():
                    end_s = min(end_s, time.monotonic() + _GRACE_S)
                    self._closing.clear()
                if time.monotonic() > end_s:
                    raise PeerLostError(f"rank {rank} did not save its part of the checkpoint")
                time.sleep(_POLL_EVERY_S)
            return self._store.get(key).decode()
        except DistError as error:
            raise PeerLostError("the launcher has ended", hint="--resume auto continues") from error


def _part_of(rank: int, message: str) -> PartFiles:
    """Return what the rank wrote. Raises LlmtrainError, and MemoryError where it ran short."""
    state, _, content = message.partition(" ")
    if state == _WRITTEN:
        return TypeAdapter(PartFiles).validate_json(content)
    if state == _SHORT:
        raise MemoryError(f"rank {rank} had too little memory to save")
    raise LlmtrainError(f"rank {rank} could not save: {content}", hint=_HINT)


def _what(state: SavedState) -> str:
    return f"the checkpoint of step {state.step} could not be written"


def _key(number: int, rank: int) -> str:
    return f"save {number}, rank {rank}"
