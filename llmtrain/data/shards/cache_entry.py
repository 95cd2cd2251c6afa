"""Where an entry of the cache is built, and how it gets its place: one process at a time.

<cache>/locks/<key>.lock            held by the process that builds
<cache>/shards/.building-<key>/
  new/                              becomes <cache>/shards/<key>
  journal.json                      from the first megabytes on: the next process goes on there
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llmtrain.data.shards.journal import forget_journal, is_journaled
from llmtrain.errors import DataError, LlmtrainError
from llmtrain.files import sync_directory

BUILDING = ".building-"
_ABANDONED_AFTER_S = 24 * 3600
_LOOK_EVERY_S = 0.2


@contextmanager
def map_write_errors(place: Path, what: str = "token shards") -> Iterator[None]:
    """What the disk refuses within the block is an LlmtrainError with a way out."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {what} to {place}: {error.strerror or error}"
        hint = "make room there, or choose another place with LLMTRAIN_CACHE_DIR"
        raise LlmtrainError(message, hint=hint) from error


def require_own(entry: Path) -> None:
    """This user may read what is in the entry, if it is there. Raises DataError.

    What another user made and keeps to himself is not damaged, and is not to be made again.
    """
    try:
        paths = [entry, *entry.iterdir()] if entry.exists() else []
    except PermissionError:
        paths = [entry]
    closed = next((path for path in paths if not os.access(path, os.R_OK)), None)
    if closed is not None:
        raise DataError(
            f"{closed} was made by another user and may not be read by this one",
            hint="let its owner allow it, or have a cache of your own: LLMTRAIN_CACHE_DIR",
        )


def lock_of(cache_directory: Path, key: str) -> FileLock:
    """The lock of the entry that `key` names. The system gives it back when its holder ends."""
    locks = cache_directory / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{key}.lock")


@contextmanager
def claimed(
    cache_directory: Path, key: str, check_stop: Callable[[], None], on_wait: Callable[[], None]
) -> Iterator[None]:
    """Within the block no other process builds the entry `key`. Waits for one that does.

    `on_wait` is called once if it has to. Whatever `check_stop` raises ends the waiting.
    """
    lock, is_waiting = lock_of(cache_directory, key), False
    while True:
        try:
            lock.acquire(timeout=_LOOK_EVERY_S)
            break
        except Timeout:
            check_stop()
            if not is_waiting:
                on_wait()
            is_waiting = True
    try:
        yield
    finally:
        lock.release()


@contextmanager
def scratch_directory(shards: Path, key: str) -> Iterator[Path]:
    """`.building-<key>`, with what an earlier process left in it to go on from.

    Afterwards it is gone, unless there is something to go on from again.
    """
    remove_abandoned(shards)
    scratch = shards / (BUILDING + key)
    try:
        if not is_journaled(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
        new = scratch / "new"
        new.mkdir(parents=True, exist_ok=True)
        for path in new.glob(".*"):  # an index or a manifest in the middle of which it was killed
            path.unlink()
        yield scratch
    finally:
        if not is_journaled(scratch):
            shutil.rmtree(scratch, ignore_errors=True)


def start_over(scratch: Path) -> None:
    """Nothing is left in `scratch` of what an earlier process wrote."""
    forget_journal(scratch)
    shutil.rmtree(scratch / "new")
    (scratch / "new").mkdir()


def publish(scratch: Path, directory: Path) -> None:
    """`directory` is the new entry. What was there before, which is damaged, is not any more."""
    if directory.exists():
        directory.rename(scratch / f"damaged-{time.time_ns()}")
    (scratch / "new").rename(directory)
    sync_directory(directory.parent)
    forget_journal(scratch)


def remove_abandoned(shards: Path) -> None:
    """What a killed process left behind, and nobody wrote to for a day, is gone."""
    for scratch in shards.glob(BUILDING + "*"):
        with suppress(OSError, Timeout):  # its owner may be alive, and removing files meanwhile
            times = [path.stat().st_mtime for path in (scratch, *scratch.rglob("*"))]
            if time.time() - max(times) > _ABANDONED_AFTER_S:
                _remove(scratch)


def remove_leftover(shards: Path, key: str) -> None:
    """What a process killed just after it had published the entry did not come to remove."""
    scratch = shards / (BUILDING + key)
    if scratch.is_dir():
        with suppress(OSError, Timeout):  # another process is at it, or makes the entry again
            _remove(scratch)


def _remove(scratch: Path) -> None:
    """Raises OSError, and Timeout where a process works in it."""
    key = scratch.name.removeprefix(BUILDING)
    with lock_of(scratch.parent.parent, key).acquire(timeout=0):
        shutil.rmtree(scratch)
