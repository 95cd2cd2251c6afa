"""Verify every checkpoint of a run, which may be in training; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llmtrain.errors import LlmtrainError
from llmtrain.train.checkpoint.integrity import (
    DamagedCheckpointError,
    RemovedCheckpointError,
    verify_checkpoint,
)
from llmtrain.train.run_directory.find import find_checkpoints


@dataclass(frozen=True, slots=True)
class Verified:
    """Checkpoints, oldest first, by what was found; each problem in one line."""

    good: list[Path] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)

    @property
    def newest_good(self) -> Path | None:
        """The last of the good ones."""
        return self.good[-1] if self.good else None


def verify_run(run: str) -> Verified:
    """Verify the checkpoints that `run` names. Raises UsageError for an unknown run.

    Where a run in training removes one meanwhile, those that it saved since are verified instead.
    """
    found, seen, is_complete = Verified(), set[Path](), False
    while not is_complete:
        is_complete = True
        for path in find_checkpoints(run):
            if path not in seen:
                seen.add(path)
                is_complete &= _verify(path, found)
    return found


def _verify(path: Path, found: Verified) -> bool:
    """Add the checkpoint to `found`; return False if it was removed meanwhile."""
    try:
        verify_checkpoint(path)
    except RemovedCheckpointError:
        return False
    except DamagedCheckpointError as error:
        found.damaged[path] = error.message
    except LlmtrainError as error:
        found.unreadable[path] = error.message
    else:
        found.good.append(path)
    return True
