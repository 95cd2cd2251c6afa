"""Remember how fast this processor multiplied, so that fresh runs on one machine agree."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtrain.device.facts import Facts, MatmulTimes
from llmtrain.files import write_text_atomically

# Variables that make oneDNN, ATen or MKL choose other kernels on the same processor.
_KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)


@dataclass(frozen=True, slots=True)
class ProbeKey:
    """All that a measured time depends on."""

    cpu_model: str | None
    isa: tuple[str, ...]
    threads: int
    torch_version: str
    hidden_size: int
    intermediate_size: int
    tokens: int
    environment: tuple[tuple[str, str], ...] = ()  # the kernel variables that are set


def kernel_environment(
    environment: Mapping[str, str] = os.environ,
) -> tuple[tuple[str, str], ...]:
    """The variables in `environment` that change which kernels run, in a fixed order."""
    return tuple((name, environment[name]) for name in _KERNEL_VARIABLES if name in environment)


def probe_key(
    facts: Facts, *, hidden_size: int, intermediate_size: int, tokens: int, threads: int
) -> ProbeKey:
    """The key of `time_matmuls` with these arguments, on this machine, in this environment."""
    return ProbeKey(
        cpu_model=facts.cpu.model,
        isa=facts.cpu.isa,
        threads=threads,
        torch_version=facts.torch_version,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        tokens=tokens,
        environment=kernel_environment(),
    )


def cached_matmul_times(
    directory: Path, key: ProbeKey, measure: Callable[[], MatmulTimes]
) -> tuple[MatmulTimes, bool]:
    """The times kept for `key` and True, or newly measured ones (then kept) and False.

    A cache that is damaged or cannot be written is passed over: only `measure` can raise.
    """
    path = directory / "probe" / f"{_digest(key)}.json"
    kept = _read(path, key)
    if kept is not None:
        return kept, True
    times = measure()
    _keep(path, key, times)
    return times, False


def _keep(path: Path, key: ProbeKey, times: MatmulTimes) -> None:
    document = {"key": asdict(key), "times": asdict(times)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, json.dumps(document, indent=2) + "\n")
    except OSError:
        return  # a read-only cache costs a second at every start, and nothing else


def _read(path: Path, key: ProbeKey) -> MatmulTimes | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return _parse(document, key)
    except (OSError, ValueError, RecursionError):
        return None


def _parse(document: object, key: ProbeKey) -> MatmulTimes:
    """Raises ValueError unless `document` is exactly what `_keep` writes for `key`."""
    if not isinstance(document, dict) or set(document) != {"key", "times"}:
        raise ValueError("not a probe document")
    times = document["times"]
    if document["key"] != json.loads(_canonical(key)) or not isinstance(times, dict):
        raise ValueError("kept for another machine")
    if set(times) != {"fp32_s", "medium_s", "bf16_s"} or not all(map(_is_time, times.values())):
        raise ValueError("not times")
    return MatmulTimes(**times)


def _is_time(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _canonical(key: ProbeKey) -> str:
    return json.dumps(asdict(key), sort_keys=True)


def _digest(key: ProbeKey) -> str:
    return hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]
