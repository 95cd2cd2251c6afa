"""Checkpoints: a Hugging Face model directory, the state beside it, and a manifest of hashes.

Written to a temporary directory, every file and the directory fsynced, then renamed: a
directory with a checkpoint's name is whole. Loading compares sizes and sha256 with the manifest.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.files import sha256_file, sync_directory, sync_file
from llmtrain.model.huggingface import config_of, generation_config_of, shape_from_config
from llmtrain.profile.shape import ModelShape
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.stability import Course

FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")
MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)


class DamagedCheckpointError(LlmtrainError):
    """A checkpoint does not hold what its manifest says."""


class SavedState(BaseModel):
    """Where a run stands, beside its weights and its optimizer's state."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: int = FORMAT_VERSION
    step: int
    tokens: int
    windows: int  # the data cursor: windows of the permuted order that were read
    elapsed_s: float
    begun_s: float | None = None  # of elapsed_s, before the first step
    horizon_steps: int | None
    time_progress: float | None = None  # under a time: the share of it that is over
    train_loss: float | None = None
    val_loss: float | None = None
    val_bpb: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    evaluations_without_best: int = 0
    peak_memory_bytes: int = 0
    finished: bool = False
    torch_rng: str  # base64
    grad_scaler: dict[str, float] | None = None
    course: Course = Course()
    numerics: dict[str, Any]
    not_bitwise_from_step: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a checkpoint directory holds."""

    state: SavedState
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    shape: ModelShape
    tokenizer: Tokenizer


def checkpoint_name(step: int) -> str:
    """The directory's name; names sort by step."""
    return f"step-{step:08d}"


def list_checkpoints(directory: Path) -> list[Path]:
    """Directories with a checkpoint's name, oldest step first."""
    if not directory.is_dir():
        return []
    found = [p for p in directory.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda path: step_of(path))


def step_of(path: Path) -> int:
    """The step in a checkpoint directory's name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """A durable, whole checkpoint under `directory`; an older one of the same step is replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / checkpoint_name(checkpoint.state.step)
    temporary = directory / f".{final.name}.{secrets.token_hex(4)}"
    temporary.mkdir()  # with the rights that the user's other files have, unlike mkdtemp's
    try:
        _write_files(temporary, checkpoint)
        _write_manifest(temporary)
        _put_in_place(temporary, final)
        sync_directory(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _set_aside_given_up(directory, checkpoint.state)
    return final


def _set_aside_given_up(directory: Path, state: SavedState) -> None:
    """What a rewound run gave up is not taken for its newest, now that there is a newer one."""
    if not state.course.jumps:
        return
    for path in list_checkpoints(directory):
        if step_of(path) > state.step or not is_of(state.course, path):
            set_aside(path, "superseded")


def is_of(course: Course, path: Path) -> bool:
    """Whether the run that came by `course` was where this checkpoint is."""
    try:
        return course.went_through(step_of(path), load_state(path).course)
    except (DamagedCheckpointError, UsageError):
        return False


def _put_in_place(temporary: Path, final: Path) -> None:
    """`temporary` is called `final`; what was called so is gone, or still there on an error."""
    if not final.exists():
        temporary.replace(final)
        return
    older = final.replace(temporary.with_name(temporary.name + ".old"))
    try:
        temporary.replace(final)
    except BaseException:
        older.replace(final)
        raise
    shutil.rmtree(older, ignore_errors=True)


def verify_checkpoint(path: Path) -> None:
    """Every file is as the manifest says. Raises DamagedCheckpointError naming the file."""
    for name, entry in _read_manifest(path).items():
        file = path / name
        try:
            _verify_file(file, entry)
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
            raise DamagedCheckpointError(f"{file} cannot be read: {error}") from None


def _verify_file(file: Path, entry: Mapping[str, Any]) -> None:
    if not file.is_file():
        raise DamagedCheckpointError(f"{file} is missing")
    if file.stat().st_size != entry["bytes"]:
        raise DamagedCheckpointError(
            f"{file} has {file.stat().st_size} bytes, the manifest says {entry['bytes']}"
        )
    if sha256_file(file) != entry["sha256"]:
        raise DamagedCheckpointError(f"{file} is not what was written: its sha256 differs")


def load_checkpoint(path: Path, *, with_optimizer: bool = True) -> Checkpoint:
    """The checkpoint at `path`, verified. Raises DamagedCheckpointError."""
    verify_checkpoint(path)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        state = load_state(path)
        weights = load_file(path / MODEL)
        optimizer = load_file(path / OPTIMIZER) if with_optimizer else {}
    except (OSError, ValueError, SafetensorError, ValidationError) as error:
        raise DamagedCheckpointError(f"{path}: {error}") from None
    shape = shape_from_config(config, str(path / "config.json"))
    return Checkpoint(state, weights, optimizer, shape, Tokenizer.load(path))


def load_state(path: Path) -> SavedState:
    """Where the run stood at the checkpoint, unverified. Raises DamagedCheckpointError."""
    try:
        values = json.loads((path / STATE).read_text(encoding="utf-8"))
        _require_format(path, values)
        return SavedState.model_validate(values)
    except (OSError, ValueError, ValidationError) as error:
        raise DamagedCheckpointError(f"{path}: {error}") from None


def _require_format(path: Path, state: object) -> None:
    # before the other values are looked at: another format may have others
    found = state.get("format_version") if isinstance(state, dict) else None
    if found != FORMAT_VERSION:
        raise UsageError(f"{path} has format {found}; this llmtrain reads {FORMAT_VERSION}")


def newest_good(directory: Path, on_damage: Callable[[Path, str], None]) -> Path | None:
    """The newest checkpoint that verifies; `on_damage` is told of each newer one that does not.

    Raises DamagedCheckpointError where there are checkpoints and none is whole.
    """
    candidates = list_checkpoints(directory)
    for path in reversed(candidates):
        try:
            verify_checkpoint(path)
        except DamagedCheckpointError as error:
            on_damage(path, error.message)
        else:
            return path
    if candidates:
        raise DamagedCheckpointError(
            f"none of the {len(candidates)} checkpoints in {directory} is whole",
            hint="start anew with another --out",
        )
    return None


def set_aside(path: Path, why: str) -> Path:
    """The directory is renamed to end in `why`, so that it no longer counts as a checkpoint."""
    number = 0
    while (aside := path.with_name(f"{path.name}.{why}{number or ''}")).exists():
        number += 1
    return path.rename(aside)


def remove_old(directory: Path, keep_last: int, keep_step: int | None) -> None:
    """Only the newest `keep_last` checkpoints and the one of `keep_step` are left."""
    for path in list_checkpoints(directory)[:-keep_last]:
        if step_of(path) != keep_step:
            # renamed first: a half-removed directory must not look like a checkpoint
            doomed = path.with_name(f".{path.name}.removed")
            shutil.rmtree(doomed, ignore_errors=True)  # of a removal that was cut short
            shutil.rmtree(path.rename(doomed), ignore_errors=True)


def _write_files(directory: Path, checkpoint: Checkpoint) -> None:
    separator_id = checkpoint.tokenizer.separator_id
    _write_json(directory / "config.json", config_of(checkpoint.shape, separator_id))
    _write_json(directory / "generation_config.json", generation_config_of(separator_id))
    checkpoint.tokenizer.save(directory, model_max_length=checkpoint.shape.context)
    _write_tensors(directory / MODEL, checkpoint.weights)
    _write_tensors(directory / OPTIMIZER, checkpoint.optimizer)
    _write_json(directory / STATE, checkpoint.state.model_dump(mode="json"))


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


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


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    file = path / MANIFEST
    try:
        files = json.loads(file.read_text(encoding="utf-8"))["files"]
        names_are_plain = all(Path(name).name == name for name in files)
        complete = all({"bytes", "sha256"} <= set(entry) for entry in files.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{file} cannot be read: {error}") from None
    required = {MODEL, OPTIMIZER, STATE, "config.json", "tokenizer.model"}
    if not names_are_plain or not complete or not required <= set(files):
        raise DamagedCheckpointError(f"{file} is not the manifest of a checkpoint")
    checked: dict[str, dict[str, Any]] = files
    return checked
