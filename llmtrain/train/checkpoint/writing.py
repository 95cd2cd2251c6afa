"""Write checkpoints atomically: after a crash at any point only complete ones have their names.

1. Every file is written into a hidden directory beside the others.
2. Each is synced and hashed; the manifest is written and synced, and the directory is synced.
3. All files are read back from the disk and compared with the manifest.
4. The directory is renamed to its final name, and its parent is synced.
5. Only then older checkpoints are removed: renamed first, so that none is visible half removed.

After 1 the tensors may change. `recover` cleans up after a crash, before the next session.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llmtrain.files import forget_cached, sha256_file, sync_directory, sync_file, write_json
from llmtrain.model.huggingface import config_of, generation_config_of
from llmtrain.tokenizer.chat_template import stop_ids_of
from llmtrain.train.checkpoint.adapter import write_adapter
from llmtrain.train.checkpoint.format import (
    FORMAT_VERSION,
    Checkpoint,
    SavedState,
    is_on_current_path,
)
from llmtrain.train.checkpoint.integrity import (
    DamagedCheckpointError,
    verify_checkpoint,
    verify_files,
)
from llmtrain.train.checkpoint.names import (
    checkpoint_name,
    entries_of,
    list_checkpoints,
    set_aside,
    step_of,
)
from llmtrain.train.checkpoint.parts import INDEX, MANIFEST, MODEL, OPTIMIZER, STATE, part_name
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
    written = _hidden(directory, checkpoint.state.step)
    written.hidden.mkdir()  # with the user's default permissions, unlike mkdtemp's
    try:
        _write_files(written.hidden, checkpoint)
    except BaseException:
        shutil.rmtree(written.hidden, ignore_errors=True)
        raise
    return written


def _hidden(directory: Path, step: int) -> Written:
    final = directory / checkpoint_name(step)
    return Written(directory / f".{final.name}.{secrets.token_hex(4)}", final)


def begin_parts(directory: Path, step: int) -> Written:
    """Make the hidden directory of a checkpoint that several ranks write."""
    directory.mkdir(exist_ok=True)
    written = _hidden(directory, step)
    written.hidden.mkdir()
    return written


@dataclass(frozen=True, slots=True)
class PartFiles:
    """The files that a rank wrote: their entries of the manifest, and which weights are in them."""

    entries: dict[str, dict[str, Any]]
    weights: list[str]
    weights_bytes: int


def write_part(written: Written, checkpoint: Checkpoint, number: int, parts: int) -> PartFiles:
    """Write a rank's tensors, sync them, and read them back from the disk.

    `number` counts from 1. Raises DamagedCheckpointError.
    """
    hidden = written.hidden
    names = part_name("model", number, parts), part_name("optimizer", number, parts)
    write_tensors(hidden / names[0], checkpoint.weights)
    write_tensors(hidden / names[1], checkpoint.optimizer)
    entries = _synced_entries(hidden / name for name in names)
    _verify_on_disk(hidden, entries)
    size = sum(tensor.numel() * tensor.itemsize for tensor in checkpoint.weights.values())
    return PartFiles(entries, list(checkpoint.weights), size)


def finalize_parts(written: Written, checkpoint: Checkpoint, parts: Sequence[PartFiles]) -> Path:
    """Write the other files beside the parts of all ranks, and rename; return the final path."""
    hidden = written.hidden
    _write_description(hidden, checkpoint)
    places = {
        name: part_name("model", number + 1, len(parts))
        for number, part in enumerate(parts)
        for name in part.weights
    }
    metadata = {"total_size": sum(part.weights_bytes for part in parts)}
    write_json(hidden / INDEX, {"metadata": metadata, "weight_map": places})
    by_ranks = {name: entry for part in parts for name, entry in part.entries.items()}
    _require_sizes(hidden, by_ranks)
    own = _synced_entries(path for path in hidden.iterdir() if path.name not in by_ranks)
    _write_manifest(hidden, own | by_ranks)
    _verify_on_disk(hidden, own)
    _rename(hidden, written.final)
    sync_directory(written.final.parent)
    return written.final


def finalize_checkpoint(written: Written) -> Path:
    """Sync, verify and rename what was written; return the final path. On an error remove it."""
    hidden, final = written.hidden, written.final
    try:
        _write_manifest(hidden, _synced_entries(hidden.iterdir()))
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
    if checkpoint.adapter is None:
        write_tensors(directory / MODEL, checkpoint.weights)
    else:
        write_adapter(directory, checkpoint.adapter, checkpoint.weights)
    write_tensors(directory / OPTIMIZER, checkpoint.optimizer)
    _write_description(directory, checkpoint)


def _write_description(directory: Path, checkpoint: Checkpoint) -> None:
    """Write everything but tensors."""
    bos_id, eos_id = checkpoint.tokenizer.bos_id, checkpoint.tokenizer.eos_id
    write_json(directory / "config.json", config_of(checkpoint.shape, bos_id, eos_id))
    generation = generation_config_of(bos_id, eos_id, stop_ids_of(checkpoint.tokenizer))
    write_json(directory / "generation_config.json", generation)
    checkpoint.tokenizer.save(directory, model_max_length=checkpoint.shape.context)
    write_json(directory / STATE, checkpoint.state.model_dump(mode="json"))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _synced_entries(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Sync the files; return their entries of the manifest."""
    entries = {}
    for path in sorted(paths):
        sync_file(path)
        entries[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    return entries


def _write_manifest(directory: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    manifest = {"format_version": FORMAT_VERSION, "files": entries}
    write_json(directory / MANIFEST, manifest)
    sync_file(directory / MANIFEST)
    sync_directory(directory)


def _read_back(directory: Path) -> None:
    """Verify the files as the disk returns them. Raises DamagedCheckpointError."""
    for path in directory.iterdir():
        forget_cached(path)  # otherwise the system would read from its cache, not from the disk
    verify_checkpoint(directory)


def _verify_on_disk(directory: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Verify some files as `_read_back` does all."""
    for name in entries:
        forget_cached(directory / name)
    verify_files(directory, entries)


def _require_sizes(directory: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise DamagedCheckpointError unless this rank sees the files that others have verified."""
    for name, entry in entries.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise DamagedCheckpointError(
                f"{path} was written by another rank, and is not whole here",
                hint="ranks on several machines need storage that all of them share",
            )
