"""Entries of the cache are there whole or not at all, also where a process is killed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmtrain.errors import LlmtrainError
from llmtrain.files import sync_directory

_BUILDING = ".building-"
_ABANDONED_AFTER_S = 24 * 3600


@contextmanager
def scratch_beside(parent: Path, what: str) -> Iterator[Path]:
    """A directory in `parent`, which is made, that is gone afterwards whatever happens.

    What a killed process left behind there, and nobody wrote to for a day, is gone too. An OSError
    inside the block is a LlmtrainError: `what` cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        with tempfile.TemporaryDirectory(
            dir=parent, prefix=_BUILDING, ignore_cleanup_errors=True
        ) as scratch:
            yield Path(scratch)
    except OSError as error:
        message = f"cannot write {what} to {parent}: {error.strerror or error}"
        hint = "make room there, or choose another place with LLMTRAIN_CACHE_DIR"
        raise LlmtrainError(message, hint=hint) from error


def publish(built: Path, entry: Path) -> None:
    """`entry` is what was built, or what another process has put there before."""
    try:
        built.rename(entry)
    except OSError:
        if not entry.exists():
            raise
        return
    sync_directory(entry.parent)


def _remove_abandoned(parent: Path) -> None:
    for scratch in parent.glob(_BUILDING + "*"):
        with suppress(OSError):  # its owner may be alive, and removing files meanwhile
            times = [path.stat().st_mtime for path in (scratch, *scratch.rglob("*"))]
            if time.time() - max(times) > _ABANDONED_AFTER_S:
                shutil.rmtree(scratch)
