"""Checkpoints: a Hugging Face model directory, the state beside it, and a manifest of hashes.

`llmtrain.train.checkpoint.writing` writes them atomically: a directory with a checkpoint's name is
complete. Loading compares sizes and sha256 with the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt
from torch import Tensor

from llmtrain.errors import DataError, UsageError
from llmtrain.files import sha256_file
from llmtrain.model.huggingface import shape_from_config
from llmtrain.profile.shape import ModelShape
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.checkpoint.adapter import (
    ADAPTER,
    Adapter,
    read_adapter,
)
from llmtrain.train.checkpoint.integrity import (
    DamagedCheckpointError,
    errors_mapped,
    lacks_optimizer,
    read_manifest,
    verify_checkpoint,
)
from llmtrain.train.checkpoint.names import (
    list_checkpoints,
    step_of,
)
from llmtrain.train.checkpoint.parts import (
    STATE,
    Kind,
    files_in,
    tensor_files,
)
from llmtrain.train.checkpoint.tensors import read_tensors
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.untrusted import read_json

FORMAT_VERSION = 2


class SavedState(BaseModel):
    """The state of a run besides weights and optimizer state; the fields of state.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: int = FORMAT_VERSION
    step: NonNegativeInt
    tokens: NonNegativeInt
    windows: NonNegativeInt  # the data cursor: windows read of the permuted order
    elapsed_s: float
    begun_s: float | None = None  # of elapsed_s: starting and compiling
    horizon_steps: int | None
    time_progress: float | None = None  # share of the time limit used
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
    course: DivergenceState
    numerics: dict[str, Any]
    not_bitwise_from_step: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a checkpoint directory contains."""

    state: SavedState
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    shape: ModelShape
    tokenizer: Tokenizer
    has_optimizer: bool = True  # False: the weights alone were saved or kept
    adapter: Adapter | None = None  # of which `weights` are the tensors, and not of a whole model

    def whole_weights(self) -> Mapping[str, Tensor]:
        """Return the weights of the whole model, adapters merged. Raises LlmtrainError."""
        if self.adapter is None:
            return self.weights
        return self.adapter.merged(self.weights, self.shape)


def is_on_current_path(divergence: DivergenceState, path: Path) -> bool:
    """Return whether the checkpoint is on the run's path: no rewind has discarded it."""
    try:
        return divergence.passed_through(step_of(path), load_state(path).course)
    except (DamagedCheckpointError, UsageError):
        return False


def load_checkpoint(path: Path, *, with_optimizer: bool = True) -> Checkpoint:
    """Verify and load the checkpoint at `path`. Raises DamagedCheckpointError.

    Where its optimizer file is missing, it has no optimizer state. Raises DataError for a tokenizer
    of more pieces than the model has embedding rows.
    """
    with_optimizer = with_optimizer and not lacks_optimizer(path)
    verify_checkpoint(path, with_optimizer=with_optimizer)
    state = load_state(path)
    with errors_mapped(path / "config.json") as file:
        shape = shape_from_config(read_json(file), str(file))
    adapter: Adapter | None = None
    if (path / ADAPTER).is_file():
        with errors_mapped(path / ADAPTER):
            adapter, weights = read_adapter(path, shape)
    else:
        weights = _read_kind(path, "model")
    optimizer = _read_kind(path, "optimizer") if with_optimizer else {}
    tokenizer = Tokenizer.load(path)
    if shape.vocab_size < tokenizer.vocab_size:
        raise DataError(
            f"{path}: the model has {shape.vocab_size} embedding rows for the "
            f"{tokenizer.vocab_size} pieces of its tokenizer",
            hint="put back the tokenizer that the model was trained with",
        )
    return Checkpoint(state, weights, optimizer, shape, tokenizer, with_optimizer, adapter)


def _read_kind(path: Path, kind: Kind) -> dict[str, Tensor]:
    """Return the tensors in one file or several, which were verified; on the CPU, whole."""
    found: dict[str, Tensor] = {}
    for name in tensor_files(kind, read_manifest(path)):
        with errors_mapped(path / name) as file:
            tensors = read_tensors(file)
            if twice := found.keys() & tensors.keys():
                raise ValueError(f"{min(twice)} is in another part, too")
            found |= tensors
    return found


def weights_files(path: Path) -> list[Path]:
    """Return the files of a checkpoint with what was trained: the model, or its adapters."""
    return [path / ADAPTER] if (path / ADAPTER).is_file() else files_in(path, "model")


def weights_sha256(path: Path) -> str:
    """Return the hash of the file with what was trained, or of the hashes of several."""
    return _joint_sha256(weights_files(path))


def optimizer_sha256(path: Path) -> str:
    """Return the hash of the file with optimizer state, or of the hashes of several."""
    return _joint_sha256(files_in(path, "optimizer"))


def _joint_sha256(files: Sequence[Path]) -> str:
    hashes = [sha256_file(file) for file in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def load_state(path: Path) -> SavedState:
    """Return the run's state at the checkpoint, unverified. Raises DamagedCheckpointError."""
    with errors_mapped(path / STATE) as file:
        return SavedState.model_validate(_upgraded(path, read_json(file)))


def _upgraded(path: Path, state: object) -> Mapping[str, Any]:
    """Return the state in the current format. Raises UsageError for an unknown format."""
    found = state.get("format_version") if isinstance(state, dict) else None
    if not isinstance(state, dict) or found not in (1, FORMAT_VERSION):
        raise UsageError(
            f"{path} has format {found}; this llmtrain reads 1, {FORMAT_VERSION}",
            hint="it was written by a newer llmtrain: pipx upgrade llmtrain",
        )
    if found == 1:  # whose runs stopped at the first number that was not finite
        return state | {"course": {}, "format_version": FORMAT_VERSION}
    return state


def newest_good(directory: Path, on_damage: Callable[[Path, str], None]) -> Path | None:
    """Return the newest checkpoint that is whole; call `on_damage` for each newer, damaged one.

    Where none is whole, it is the newest that lacks only its optimizer state. Raises
    DamagedCheckpointError where there are checkpoints and none of either kind, and LlmtrainError
    for one that cannot be read.
    """
    candidates = list_checkpoints(directory)
    problems: dict[Path, str] = {}
    found = _newest_verified(candidates, problems, with_optimizer=True)
    if found is None:
        weights_only = [path for path in candidates if lacks_optimizer(path)]
        found = _newest_verified(weights_only, {}, with_optimizer=False)
    for path, problem in problems.items():
        if found is None or step_of(path) > step_of(found):
            on_damage(path, problem)
    if candidates and found is None:
        raise DamagedCheckpointError(
            f"none of the {len(candidates)} checkpoints in {directory} is intact",
            hint="start a new run with another --out",
        )
    return found


def _newest_verified(
    candidates: Sequence[Path], problems: dict[Path, str], *, with_optimizer: bool
) -> Path | None:
    """Return the last intact candidate; add what is wrong with each after it to `problems`."""
    for path in reversed(candidates):
        try:
            verify_checkpoint(path, with_optimizer=with_optimizer)
            load_state(path)
        except DamagedCheckpointError as error:
            problems[path] = error.message
        else:
            return path
    return None
