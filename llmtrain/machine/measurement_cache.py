"""Remember how fast this processor multiplied, so that fresh runs on one machine agree."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from llmtrain.errors import UsageError
from llmtrain.files import write_text_atomically
from llmtrain.machine.facts import AttentionTimes, BlockTimes, Facts, MatmulTimes, RunFigures
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


Times = MatmulTimes | AttentionTimes | BlockTimes | RunFigures
T = TypeVar("T", MatmulTimes, AttentionTimes, BlockTimes, RunFigures)


@dataclass(frozen=True, slots=True)
class MeasurementKey:
    """All that a measured time depends on."""

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
    """The variables in `environment` that change which kernels run, in a fixed order."""
    return tuple((name, environment[name]) for name in _KERNEL_VARIABLES if name in environment)


def measurement_key(
    facts: Facts, what: str, threads: int, **arguments: int | str
) -> MeasurementKey:
    """The key of measuring `what` with `arguments`, on this machine, in this environment."""
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
    """The times kept for `key`; None where there are none that can be believed."""
    try:
        return _parse(read_json(_path(directory, key)), key, kind)
    except (OSError, ValueError, UsageError):
        return None


def save_measurement(directory: Path, key: MeasurementKey, times: Times) -> None:
    """`times` are kept for `key`, where the directory can be written."""
    document = {"key": asdict(key), "times": asdict(times)}
    path = _path(directory, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, json.dumps(document, indent=2) + "\n")
    except OSError:
        return  # a read-only cache costs a second at every start, and nothing else


def _path(directory: Path, key: MeasurementKey) -> Path:
    return directory / "probe" / f"{_digest(key)}.json"


def _parse(document: object, key: MeasurementKey, kind: type[T]) -> T:
    """Raises ValueError unless `document` is exactly what `keep_times` writes for `key`."""
    if not isinstance(document, dict) or set(document) != {"key", "times"}:
        raise ValueError("not a probe document")
    times = document["times"]
    if document["key"] != json.loads(_canonical(key)) or not isinstance(times, dict):
        raise ValueError("kept for another machine")
    names = {field.name for field in fields(kind)}
    if set(times) != names or not all(map(_is_time, times.values())):
        raise ValueError("not times")
    return kind(**times)


def _is_time(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _canonical(key: MeasurementKey) -> str:
    return json.dumps(asdict(key), sort_keys=True)


def _digest(key: MeasurementKey) -> str:
    return hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]
