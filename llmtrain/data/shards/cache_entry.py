"""Build an entry of the cache atomically: in a directory of its own, then moved to its place.

<cache>/locks/<key>.lock            held by the process that builds the entry
<cache>/shards/.building-<key>/     tokenizers/ and remote/…/ have the same
  new/                              becomes <cache>/shards/<key>
  journal.json                      of shards: their progress, for the next process to continue
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llmtrain.errors import DataError, LlmtrainError
from llmtrain.files import sync_directory

BUILDING = ".building-"
JOURNAL_NAME = "journal.json"
_ABANDONED_AFTER_S = 24 * 3600
_POLL_S = 0.2


@contextmanager
def map_write_errors(place: Path, what: str = "token shards") -> Iterator[None]:
    """Convert an OSError inside the block to an LlmtrainError: `what` cannot be written."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {what} to {place}: {error.strerror or error}"
        hint = "make it writable, with room, or choose another place with LLMTRAIN_CACHE_DIR"
        raise LlmtrainError(message, hint=hint) from error


def require_usable_cache(cache_directory: Path) -> None:
    """Raise LlmtrainError if nothing can be written to the cache and nothing is prepared in it.

    A cache that is only read is of use if it has the text's shards. To be called before the work
    whose result the cache would hold.
    """
    try:
        cache_directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_directory):
            pass
    except OSError as error:
        with suppress(OSError):
            if any((cache_directory / "shards").glob("[!.]*")):
                return
        raise LlmtrainError(
            f"the cache {cache_directory} cannot be written: {error.strerror or error}",
            hint="LLMTRAIN_CACHE_DIR=DIRECTORY names another place for it",
        ) from error


def require_readable(entry: Path) -> None:
    """Raise DataError if the entry exists and this user may not read it.

    An entry that another user made is not damaged, and must not be replaced.
    """
    try:
        paths = [entry, *entry.iterdir()] if entry.exists() else []
    except PermissionError:
        paths = [entry]
    unreadable = next((path for path in paths if not os.access(path, os.R_OK)), None)
    if unreadable is not None:
        raise DataError(
            f"{unreadable} belongs to another user, and you may not read it",
            hint="ask its owner for permission, or use a cache of your own: LLMTRAIN_CACHE_DIR",
        )


def entry_lock(cache_directory: Path, key: str) -> FileLock:
    """Return the lock of the entry `key`. The system releases it when its holder ends."""
    locks = cache_directory / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{key}.lock")


@contextmanager
def locked_entry(
    cache_directory: Path, key: str, check_stop: Callable[[], None], on_wait: Callable[[], None]
) -> Iterator[None]:
    """Hold the lock of the entry `key` inside the block; wait while another process holds it.

    Calls `on_wait` once if it has to wait. Raises what `check_stop` raises.
    """
    lock, is_waiting = entry_lock(cache_directory, key), False
    while True:
        try:
            lock.acquire(timeout=_POLL_S)
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
def building_directory(parent: Path, key: str | None = None) -> Iterator[Path]:
    """Yield `.building-<key>` in `parent` with the directory `new` inside.

    Without a `key`, for entries that several processes may build at once, its name is unique. It is
    removed afterwards, unless it has a journal: the next process with that key finds all of it.
    """
    remove_abandoned(parent)
    scratch = parent / (BUILDING + (key or secrets.token_hex(8)))
    try:
        if not has_journal(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
        new = scratch / "new"
        new.mkdir(parents=True, exist_ok=True)
        for path in new.glob(".*"):  # files that a killed process was writing
            path.unlink()
        yield scratch
    finally:
        if not has_journal(scratch):
            shutil.rmtree(scratch, ignore_errors=True)


def has_journal(scratch: Path) -> bool:
    """Return whether a process can continue what an earlier one left in `scratch`."""
    return (scratch / JOURNAL_NAME).is_file()


def remove_journal(scratch: Path) -> None:
    """Remove the journal, so that no process continues what is in `scratch`."""
    (scratch / JOURNAL_NAME).unlink(missing_ok=True)


def start_over(scratch: Path) -> None:
    """Remove everything that an earlier process left in `scratch`."""
    remove_journal(scratch)
    shutil.rmtree(scratch / "new")
    (scratch / "new").mkdir()


def publish(built: Path, entry: Path) -> None:
    """Move the built entry to its place, unless another process has put the same there."""
    try:
        built.rename(entry)
    except OSError:
        if not entry.exists():
            raise
        return
    sync_directory(entry.parent)


def replace_entry(scratch: Path, entry: Path) -> None:
    """Move `new` in `scratch` to its place; the damaged entry there is removed."""
    if entry.exists():
        entry.rename(scratch / f"damaged-{time.time_ns()}")
    publish(scratch / "new", entry)
    remove_journal(scratch)


def remove_abandoned(parent: Path) -> None:
    """Remove building directories of killed processes, if nothing was written for a day."""
    for scratch in parent.glob(BUILDING + "*"):
        with suppress(OSError, Timeout):  # its owner may be alive and removing files
            times = [path.stat().st_mtime for path in (scratch, *scratch.rglob("*"))]
            if time.time() - max(times) > _ABANDONED_AFTER_S:
                _remove(scratch)


def remove_leftover(parent: Path, key: str) -> None:
    """Remove the building directory of a process killed after it had published the entry."""
    scratch = parent / (BUILDING + key)
    if scratch.is_dir():
        with suppress(OSError, Timeout):  # another process uses it, or builds the entry again
            _remove(scratch)


def _remove(scratch: Path) -> None:
    """Remove the directory. Raises Timeout if a process holds the entry's lock."""
    key = scratch.name.removeprefix(BUILDING)
    with entry_lock(scratch.parent.parent, key).acquire(timeout=0):
        shutil.rmtree(scratch)
