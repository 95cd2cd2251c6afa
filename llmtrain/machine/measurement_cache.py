"""Cache measurements of this machine, so that each is made once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from llmtrain.errors import UsageError
from llmtrain.files import write_text_atomically
from llmtrain.machine.facts import (
    AttentionTimes,
    BlockTimes,
    ExchangeTimes,
    Facts,
    LossTimes,
    MatmulTimes,
    PartTime,
    ProcessTimes,
    RunFigures,
)
from llmtrain.untrusted import read_json

# Variables that make oneDNN, ATen or MKL choose other kernels on the same processor.
_KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)

_LONGEST_FAILURE = 500  # characters of a reason

Times = (
    MatmulTimes
    | AttentionTimes
    | BlockTimes
    | LossTimes
    | PartTime
    | ProcessTimes
    | ExchangeTimes
    | RunFigures
)
T = TypeVar(
    "T",
    MatmulTimes,
    AttentionTimes,
    BlockTimes,
    LossTimes,
    PartTime,
    ProcessTimes,
    ExchangeTimes,
    RunFigures,
)


class _Document(BaseModel):
    """A saved measurement, or why there is none."""

    model_config = ConfigDict(strict=True, extra="forbid")

    key: dict[str, Any]
    times: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    failure: Annotated[str, Field(max_length=_LONGEST_FAILURE)] | None = None


@dataclass(frozen=True, slots=True)
class MeasurementKey:
    """The key of a measurement: everything that it depends on."""

    what: str
    cpu_model: str | None
    isa: tuple[str, ...]
    threads: int
    torch_version: str
    arguments: tuple[tuple[str, int | str], ...]  # what was measured, in a fixed order
    environment: tuple[tuple[str, str], ...] = ()  # the kernel variables that are set


def kernel_environment(
    environment: Mapping[str, str] = os.environ,
) -> tuple[tuple[str, str], ...]:
    """Return the variables that change which kernels run, in a fixed order."""
    return tuple((name, environment[name]) for name in _KERNEL_VARIABLES if name in environment)


def measurement_key(
    facts: Facts, what: str, threads: int, **arguments: int | str
) -> MeasurementKey:
    """Return the key of measuring `what` with `arguments` on this machine."""
    return MeasurementKey(
        what=what,
        cpu_model=facts.cpu.model,
        isa=facts.cpu.isa,
        threads=threads,
        torch_version=facts.torch_version,
        arguments=tuple(sorted(arguments.items())),
        environment=kernel_environment(),
    )


def load_measurement(directory: Path, key: MeasurementKey, kind: type[T]) -> T | None:
    """Return the measurement saved for `key`; None if there is none, or it is invalid."""
    document = _load(directory, key)
    names = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if document is None or not needed <= set(document.times) <= names:
        return None
    return kind(**document.times)


def load_failure(directory: Path, key: MeasurementKey) -> str | None:
    """Return why what `key` names could not be measured on this machine; None if it could."""
    document = _load(directory, key)
    return None if document is None else document.failure


def save_failure(directory: Path, key: MeasurementKey, reason: str) -> None:
    """Save why what `key` names cannot be measured here, in place of its times."""
    _save(directory, key, failure=reason[:_LONGEST_FAILURE])


def remove_measurement(directory: Path, key: MeasurementKey) -> None:
    """Remove what is saved for `key`, if the directory can be written."""
    with suppress(OSError):
        _path(directory, key).unlink()


def save_measurement(directory: Path, key: MeasurementKey, times: Times) -> None:
    """Save `times` for `key`, if the directory is writable."""
    known = {name: seconds for name, seconds in asdict(times).items() if seconds is not None}
    _save(directory, key, times=known)


def _load(directory: Path, key: MeasurementKey) -> _Document | None:
    try:
        document = _Document.model_validate(read_json(_path(directory, key)))
    except (OSError, ValueError, UsageError):
        return None
    return document if document.key == json.loads(_canonical(key)) else None


def _save(directory: Path, key: MeasurementKey, **found: Any) -> None:
    document = _Document(key=json.loads(_canonical(key)), **found)
    path = _path(directory, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, document.model_dump_json(indent=2, exclude_none=True) + "\n")
    except OSError:
        return  # a read-only cache costs seconds at every start


def _path(directory: Path, key: MeasurementKey) -> Path:
    return directory / "probe" / f"{_digest(key)}.json"


def _canonical(key: MeasurementKey) -> str:
    return json.dumps(asdict(key), sort_keys=True)


def _digest(key: MeasurementKey) -> str:
    return hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]
