"""Writing checkpoints so that whatever happens in between, whole ones stay and only they show.

1. Every file is written into a hidden directory beside the others.
2. Each is synced, its sha256 taken; the manifest is written and synced, and so is the directory.
3. All is read back from the disk and compared with the manifest.
4. The directory gets its name, and its parent is synced.
5. Only then older checkpoints are removed: first renamed, so that none is seen half removed.

After 1 the tensors may change. What a crash leaves is put right by `recover` before the next run.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llmtrain.files import forget_cached, sha256_file, sync_directory, sync_file
from llmtrain.model.huggingface import config_of, generation_config_of
from llmtrain.train.checkpoint.format import (
    FORMAT_VERSION,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    Checkpoint,
    SavedState,
    checkpoint_name,
    is_of,
    list_checkpoints,
    set_aside,
    step_of,
    verify_checkpoint,
)
from llmtrain.train.checkpoint.tensors import write_tensors

_HIDDEN = re.compile(r"\.(step-\d{8,})\.[0-9a-f]{8}(\.old)?|\.step-\d{8,}\.removed")


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a checkpoint are in `hidden`, which is to be called `final`."""

    hidden: Path
    final: Path


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """A durable, whole checkpoint under `directory`; an older one of the same step is replaced."""
    return seal_checkpoint(write_checkpoint(directory, checkpoint))


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> Written:
    """The checkpoint's files, under `directory` and hidden; they may not be on the disk yet."""
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / checkpoint_name(checkpoint.state.step)
    hidden = directory / f".{final.name}.{secrets.token_hex(4)}"
    hidden.mkdir()  # with the rights that the user's other files have, unlike mkdtemp's
    try:
        _write_files(hidden, checkpoint)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return Written(hidden, final)


def seal_checkpoint(written: Written) -> Path:
    """What was written is durable, was read back, and has its name; or it is gone, on an error."""
    hidden, final = written.hidden, written.final
    try:
        _write_manifest(hidden)
        _read_back(hidden)
        _put_in_place(hidden, final)
        sync_directory(final.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return final


def on_cpu(checkpoint: Checkpoint) -> Checkpoint:
    """The same with its tensors in this process's memory: copies of those that lie on a device."""
    return replace(
        checkpoint, weights=_plain(checkpoint.weights), optimizer=_plain(checkpoint.optimizer)
    )


def remove_old(directory: Path, keep_last: int, keep_step: int | None) -> None:
    """Only the newest `keep_last` checkpoints and the one of `keep_step` are left."""
    for path in list_checkpoints(directory)[:-keep_last]:
        if step_of(path) != keep_step:
            doomed = path.with_name(f".{path.name}.removed")
            shutil.rmtree(doomed, ignore_errors=True)  # of a removal that was cut short
            shutil.rmtree(path.rename(doomed), ignore_errors=True)


def set_aside_given_up(directory: Path, state: SavedState) -> None:
    """What a rewound run gave up is not taken for its newest, now that there is a newer one."""
    if not state.course.jumps:
        return
    for path in list_checkpoints(directory):
        if step_of(path) > state.step or not is_of(state.course, path):
            set_aside(path, "superseded")


def recover(directory: Path) -> None:
    """What saves and removals left that were cut short is gone.

    Only for who has the run to himself. A checkpoint that was about to be replaced by another of
    its step, and has lost its name, gets it back.
    """
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        match = _HIDDEN.fullmatch(path.name)
        if match is None:
            continue
        if match[2] and not (final := directory / match[1]).exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _put_in_place(hidden: Path, final: Path) -> None:
    """`hidden` is called `final`; what was called so is gone, or still there on an error."""
    if not final.exists():
        hidden.replace(final)
        return
    older = final.replace(hidden.with_name(hidden.name + ".old"))
    try:
        hidden.replace(final)
    except BaseException:
        older.replace(final)
        raise
    shutil.rmtree(older, ignore_errors=True)


def _write_files(directory: Path, checkpoint: Checkpoint) -> None:
    separator_id = checkpoint.tokenizer.separator_id
    _write_json(directory / "config.json", config_of(checkpoint.shape, separator_id))
    _write_json(directory / "generation_config.json", generation_config_of(separator_id))
    checkpoint.tokenizer.save(directory, model_max_length=checkpoint.shape.context)
    write_tensors(directory / MODEL, checkpoint.weights)
    write_tensors(directory / OPTIMIZER, checkpoint.optimizer)
    _write_json(directory / STATE, checkpoint.state.model_dump(mode="json"))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_manifest(directory: Path) -> None:
    files = {}
    for path in sorted(directory.iterdir()):
        sync_file(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest = {"format_version": FORMAT_VERSION, "files": files}
    _write_json(directory / MANIFEST, manifest)
    sync_file(directory / MANIFEST)
    sync_directory(directory)


def _read_back(directory: Path) -> None:
    """The disk gives back what the manifest says. Raises DamagedCheckpointError."""
    for path in directory.iterdir():
        forget_cached(path)  # or the system would answer from memory what the disk may not have
    verify_checkpoint(directory)
