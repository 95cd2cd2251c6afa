"""Compare a checkpoint with its manifest, and name what is damaged, removed or unreadable."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmtrain.errors import LlmtrainError
from llmtrain.files import sha256_file
from llmtrain.profile.requirements import requirement
from llmtrain.tokenizer.codec import NAMING_FILES
from llmtrain.train.checkpoint.adapter import (
    ADAPTER,
    ADAPTER_CONFIG,
    BASE,
)
from llmtrain.train.checkpoint.parts import (
    INDEX,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    files_in,
    is_optimizer_file,
    tensor_files,
)
from llmtrain.untrusted import is_unreached, problem_of, read_json, refuse_link, unreadable

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


class DamagedCheckpointError(LlmtrainError):
    """A checkpoint was read and does not hold what was written."""


class RemovedCheckpointError(LlmtrainError):
    """A checkpoint was removed or replaced while it was being read."""


def verify_checkpoint(path: Path, *, with_optimizer: bool = True) -> None:
    """Compare every file with the manifest. Raises DamagedCheckpointError for one that differs.

    Raises LlmtrainError for a file that cannot be read, UsageError for one that is a link, and
    RemovedCheckpointError where another process removed or replaced the checkpoint.
    """
    with _not_replaced(path):
        files = read_manifest(path)
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
        with errors_mapped(directory / name) as file:
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
            raise removed_checkpoint(path) from None
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def removed_checkpoint(path: Path) -> RemovedCheckpointError:
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


@contextmanager
def errors_mapped(file: Path) -> Iterator[Path]:
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
                raise removed_checkpoint(file.parent) from error
            raise DamagedCheckpointError(f"{file} is missing") from None
        if is_unreached(error):
            raise unreadable(file, error) from error
        raise DamagedCheckpointError(f"{file}: {_problem(error)}") from None


def _problem(error: OSError | ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {requirement(first)}"
    return problem_of(error)


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    file = path / MANIFEST
    with errors_mapped(file):
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
