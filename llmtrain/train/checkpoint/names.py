"""Names of checkpoint directories: listed by step, or set aside."""

from __future__ import annotations

import re
from pathlib import Path

from llmtrain.errors import LlmtrainError
from llmtrain.untrusted import is_unreached, unreadable

_NAME = re.compile(r"step-(\d{8,18})", re.ASCII)
_SAVED_STATE = re.compile(r"step-\d{8,18}(\..*)?|\.step-\d{8,18}\.[0-9a-f]{8}\.old", re.ASCII)
_OF_SAVING = re.compile(r"\.?step-\d{8,18}(\..*)?", re.ASCII)
_DAMAGED = re.compile(r"step-\d{8,18}\.damaged\d*", re.ASCII)


def checkpoint_name(step: int) -> str:
    """Return the directory's name; names sort by step."""
    return f"step-{step:08d}"


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the directories with a checkpoint's name, oldest step first."""
    found = [path for path in entries_of(directory) if is_checkpoint_name(path) and path.is_dir()]
    return sorted((p for p in found if not p.is_symlink()), key=lambda path: step_of(path))


def refuse_only_damaged(directory: Path) -> None:
    """Raise LlmtrainError if every checkpoint that was saved here was set aside as damaged."""
    damaged = sorted(p.name for p in entries_of(directory) if _DAMAGED.fullmatch(p.name))
    if damaged and not list_checkpoints(directory):
        raise LlmtrainError(
            f"{directory} has no checkpoint but damaged ones: {', '.join(damaged)}",
            hint="start anew with another --out, or remove them to start anew here",
        )


def has_saved_state(directory: Path) -> bool:
    """Return whether a checkpoint was ever saved here, good or set aside."""
    return any(_SAVED_STATE.fullmatch(path.name) for path in entries_of(directory))


def is_of_saving(path: Path) -> bool:
    """Return whether a save gave this name: to a checkpoint, one set aside, or a hidden one."""
    return _OF_SAVING.fullmatch(path.name) is not None


def entries_of(directory: Path) -> list[Path]:
    """Return the paths in the directory; none if there is no directory. Raises LlmtrainError."""
    try:
        return list(directory.iterdir())
    except OSError as error:
        if is_unreached(error):
            raise unreadable(directory, error) from error
        return []


def is_checkpoint_name(path: Path) -> bool:
    """Return whether this is the name of a checkpoint directory."""
    return _NAME.fullmatch(path.name) is not None


def step_of(path: Path) -> int:
    """Return the step in a checkpoint directory's name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def set_aside(path: Path, why: str) -> Path:
    """Rename the directory to end in `why`, so that it no longer counts as a checkpoint."""
    number = 0
    while (aside := path.with_name(f"{path.name}.{why}{number or ''}")).exists():
        number += 1
    return path.rename(aside)
