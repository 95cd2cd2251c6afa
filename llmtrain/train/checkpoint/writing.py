"""Write checkpoints atomically: after a crash at any point only complete ones have their names.

1. Every file is written into a hidden directory beside the others.
2. Each is synced and hashed; the manifest is written and synced, and the directory is synced.
3. All files are read back from the disk and compared with the manifest.
4. The directory is renamed to its final name, and its parent is synced.
5. Only then older checkpoints are removed: renamed first, so that none is visible half removed.

After 1 the tensors may change. `recover` cleans up after a crash, before the next session.
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
from llmtrain.tokenizer.chat_template import stop_ids_of
from llmtrain.train.checkpoint.adapter import write_adapter
from llmtrain.train.checkpoint.format import (
    FORMAT_VERSION,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    Checkpoint,
    SavedState,
    checkpoint_name,
    entries_of,
    is_on_current_path,
    list_checkpoints,
    set_aside,
    step_of,
    verify_checkpoint,
)
from llmtrain.train.checkpoint.tensors import write_tensors

_HIDDEN = re.compile(r"\.(step-\d{8,})\.[0-9a-f]{8}(\.old)?|\.step-\d{8,}\.removed")


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint whose files are in `hidden`, to be renamed to `final`."""

    hidden: Path
    final: Path


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Save a checkpoint durably under `directory`; replace an older one of the same step."""
    return finalize_checkpoint(write_checkpoint(directory, checkpoint))


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> Written:
    """Write the checkpoint's files to a hidden directory, without syncing them."""
    directory.mkdir(exist_ok=True)  # without its parents: the run may have been moved away
    final = directory / checkpoint_name(checkpoint.state.step)
    hidden = directory / f".{final.name}.{secrets.token_hex(4)}"
    hidden.mkdir()  # with the user's default permissions, unlike mkdtemp's
    try:
        _write_files(hidden, checkpoint)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return Written(hidden, final)


def finalize_checkpoint(written: Written) -> Path:
    """Sync, verify and rename what was written; return the final path. On an error remove it."""
    hidden, final = written.hidden, written.final
    try:
        _write_manifest(hidden)
        _read_back(hidden)
        _rename(hidden, final)
        sync_directory(final.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return final


def on_cpu(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with its tensors in memory; those on a device are copied."""
    return replace(
        checkpoint, weights=_plain(checkpoint.weights), optimizer=_plain(checkpoint.optimizer)
    )


def remove_old(directory: Path, keep_last: int, keep_step: int | None) -> None:
    """Remove all checkpoints but the newest `keep_last` and the one of `keep_step`."""
    for path in list_checkpoints(directory)[:-keep_last]:
        if step_of(path) != keep_step:
            removed = path.with_name(f".{path.name}.removed")
            shutil.rmtree(removed, ignore_errors=True)  # of an interrupted removal
            shutil.rmtree(path.rename(removed), ignore_errors=True)


def set_aside_superseded(directory: Path, state: SavedState) -> None:
    """Rename the checkpoints that a rewind discarded, now that there is a newer one."""
    if not state.course.jumps:
        return
    for path in list_checkpoints(directory):
        if step_of(path) > state.step or not is_on_current_path(state.course, path):
            set_aside(path, "superseded")


def recover(directory: Path) -> None:
    """Remove what interrupted saves and removals left.

    The caller must hold the run's lock. A checkpoint that lost its name while another of its step
    was to replace it is renamed back.
    """
    for path in sorted(entries_of(directory)):
        match = _HIDDEN.fullmatch(path.name)
        if match is None:
            continue
        if match[2] and not (final := directory / match[1]).exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _rename(hidden: Path, final: Path) -> None:
    """Rename `hidden` to `final` and remove an older `final`, which is restored on an error."""
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
    bos_id, eos_id = checkpoint.tokenizer.bos_id, checkpoint.tokenizer.eos_id
    _write_json(directory / "config.json", config_of(checkpoint.shape, bos_id, eos_id))
    generation = generation_config_of(bos_id, eos_id, stop_ids_of(checkpoint.tokenizer))
    _write_json(directory / "generation_config.json", generation)
    checkpoint.tokenizer.save(directory, model_max_length=checkpoint.shape.context)
    if checkpoint.adapter is None:
        write_tensors(directory / MODEL, checkpoint.weights)
    else:
        write_adapter(directory, checkpoint.adapter, checkpoint.weights)
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
    """Verify the files as the disk returns them. Raises DamagedCheckpointError."""
    for path in directory.iterdir():
        forget_cached(path)  # otherwise the system would read from its cache, not from the disk
    verify_checkpoint(directory)
