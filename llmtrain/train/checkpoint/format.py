"""Checkpoints: a Hugging Face model directory, the state beside it, and a manifest of hashes.

`llmtrain.train.checkpoint.writing` writes them atomically: a directory with a checkpoint's name is
complete. Loading compares sizes and sha256 with the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor

from llmtrain.errors import DataError, LlmtrainError, UsageError
from llmtrain.files import sha256_file
from llmtrain.model.huggingface import shape_from_config
from llmtrain.profile.requirements import requirement
from llmtrain.profile.shape import ModelShape
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.codec import NAMING_FILES
from llmtrain.train.checkpoint.adapter import (
    ADAPTER,
    ADAPTER_CONFIG,
    BASE,
    Adapter,
    read_adapter,
)
from llmtrain.train.checkpoint.parts import (
    INDEX,
    MODEL,
    OPTIMIZER,
    Kind,
    files_in,
    is_optimizer_file,
    tensor_files,
)
from llmtrain.train.checkpoint.tensors import read_tensors
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.untrusted import is_unreached, problem_of, read_json, refuse_link, unreadable

FORMAT_VERSION = 2
_NAME = re.compile(r"step-(\d{8,18})", re.ASCII)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_SAVED_STATE = re.compile(r"step-\d{8,18}(\..*)?|\.step-\d{8,18}\.[0-9a-f]{8}\.old", re.ASCII)
_DAMAGED = re.compile(r"step-\d{8,18}\.damaged\d*", re.ASCII)
STATE, MANIFEST = "state.json", "manifest.json"


class DamagedCheckpointError(LlmtrainError):
    """A checkpoint was read and does not hold what was written."""


class RemovedCheckpointError(LlmtrainError):
    """A checkpoint was removed or replaced while it was being read."""


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


def is_on_current_path(divergence: DivergenceState, path: Path) -> bool:
    """Return whether the checkpoint is on the run's path: no rewind has discarded it."""
    try:
        return divergence.passed_through(step_of(path), load_state(path).course)
    except (DamagedCheckpointError, UsageError):
        return False


def verify_checkpoint(path: Path, *, with_optimizer: bool = True) -> None:
    """Compare every file with the manifest. Raises DamagedCheckpointError for one that differs.

    Raises LlmtrainError for a file that cannot be read, UsageError for one that is a link, and
    RemovedCheckpointError where another process removed or replaced the checkpoint.
    """
    with _not_replaced(path):
        files = _read_manifest(path)
        if with_optimizer and not tensor_files("optimizer", files):
            raise DamagedCheckpointError(f"{path / MANIFEST} names no {OPTIMIZER}")
        wanted = {
            name: entry
            for name, entry in files.items()
            if with_optimizer or not is_optimizer_file(name)
        }
        verify_files(path, wanted)


def verify_files(directory: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare files with their entries of a manifest, as `verify_checkpoint` does."""
    for name, entry in entries.items():
        with _errors_mapped(directory / name) as file:
            _verify_file(file, entry)


def lacks_optimizer(path: Path) -> bool:
    """Return whether the checkpoint has no optimizer file: its weights can still be trained."""
    return not files_in(path, "optimizer")


@contextmanager
def _not_replaced(path: Path) -> Iterator[None]:
    """Raise RemovedCheckpointError for damage that was read from two directories of one name."""
    before = _identity(path)
    try:
        yield
    except DamagedCheckpointError:
        if _identity(path) != before:
            raise _removed(path) from None
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _removed(path: Path) -> RemovedCheckpointError:
    return RemovedCheckpointError(
        f"{path} was removed while it was being read", hint="give the same command again"
    )


def _verify_file(file: Path, entry: Mapping[str, Any]) -> None:
    refuse_link(file)
    info = file.stat()
    if not stat.S_ISREG(info.st_mode):
        raise DamagedCheckpointError(f"{file} is not an ordinary file")
    if info.st_size != entry["bytes"]:
        raise DamagedCheckpointError(
            f"{file} has {info.st_size} bytes, the manifest says {entry['bytes']}"
        )
    if sha256_file(file) != entry["sha256"]:
        raise DamagedCheckpointError(f"{file} was changed: its sha256 is not the manifest's")


def load_checkpoint(path: Path, *, with_optimizer: bool = True) -> Checkpoint:
    """Verify and load the checkpoint at `path`. Raises DamagedCheckpointError.

    Where its optimizer file is missing, it has no optimizer state. Raises DataError for a tokenizer
    of more pieces than the model has embedding rows.
    """
    with_optimizer = with_optimizer and not lacks_optimizer(path)
    verify_checkpoint(path, with_optimizer=with_optimizer)
    state = load_state(path)
    with _errors_mapped(path / "config.json") as file:
        shape = shape_from_config(read_json(file), str(file))
    adapter: Adapter | None = None
    if (path / ADAPTER).is_file():
        with _errors_mapped(path / ADAPTER):
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
    for name in tensor_files(kind, _read_manifest(path)):
        with _errors_mapped(path / name) as file:
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


@contextmanager
def _errors_mapped(file: Path) -> Iterator[Path]:
    """Raise DamagedCheckpointError where `file` was read and is wrong, else LlmtrainError.

    A file that permissions, the disk or a removal keep from being read may be in order.
    """
    try:
        yield file
    except ValueError as error:
        raise DamagedCheckpointError(f"{file}: {_problem(error)}") from None
    except OSError as error:
        if error.errno == errno.ENOENT:
            if not file.parent.exists():
                raise _removed(file.parent) from error
            raise DamagedCheckpointError(f"{file} is missing") from None
        if is_unreached(error):
            raise unreadable(file, error) from error
        raise DamagedCheckpointError(f"{file}: {_problem(error)}") from None


def _problem(error: OSError | ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {requirement(first)}"
    return problem_of(error)


def load_state(path: Path) -> SavedState:
    """Return the run's state at the checkpoint, unverified. Raises DamagedCheckpointError."""
    with _errors_mapped(path / STATE) as file:
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


def set_aside(path: Path, why: str) -> Path:
    """Rename the directory to end in `why`, so that it no longer counts as a checkpoint."""
    number = 0
    while (aside := path.with_name(f"{path.name}.{why}{number or ''}")).exists():
        number += 1
    return path.rename(aside)


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    file = path / MANIFEST
    with _errors_mapped(file):
        manifest = read_json(file)
    try:
        files = manifest["files"]
        names_are_plain = all(_FILE_NAME.fullmatch(name) for name in files)
        complete = all({"bytes", "sha256"} <= set(entry) for entry in files.values())
    except (LookupError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{file} cannot be read: {error}") from None
    required = {STATE, "config.json"}
    has_model = bool(tensor_files("model", files)) and (MODEL in files or INDEX in files)
    has_weights = has_model or {ADAPTER, ADAPTER_CONFIG, BASE} <= set(files)
    has_tokenizer = any(name in files for name in NAMING_FILES)
    has_all = required <= set(files) and has_weights and has_tokenizer
    if not names_are_plain or not complete or not has_all:
        raise DamagedCheckpointError(f"{file} is not the manifest of a checkpoint")
    checked: dict[str, dict[str, Any]] = files
    return checked
