"""Read the processor's description on Linux, macOS and Windows.

Only the instruction sets that decide how fast a matrix product is are read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

# As Linux names them (x86 "flags", ARM "Features") → as llmtrain names them.
_LINUX_ISA = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "avx_ne_convert": "avx_ne_convert",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "neon": "neon",
    "sve": "sve",
    "bf16": "bf16",
    "svebf16": "sve_bf16",
    "sme": "sme",
}
_SYSCTL_ISA = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.neon": "neon",
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
}


@dataclass(frozen=True, slots=True)
class CpuDescription:
    """A processor as its operating system describes it."""

    model: str | None = None
    isa: tuple[str, ...] = ()
    core_of: Mapping[int, str] = field(default_factory=dict)  # logical core → its physical core
    sockets: int | None = None

    @property
    def physical_cores(self) -> int | None:
        """The number of physical cores; None: unknown."""
        return len(set(self.core_of.values())) or None

    def cores_among(self, logical_cores: Iterable[int]) -> int | None:
        """Return the number of physical cores of `logical_cores`; None where one is unknown."""
        behind = [self.core_of.get(logical) for logical in logical_cores]
        return None if None in behind else len(set(behind))


def read_linux_cpu(root: Path = Path("/")) -> CpuDescription:
    """Read /proc/cpuinfo, and the cores from /sys if it has them, as ARM has them only there."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    described = parse_cpuinfo(text)
    core_of, packages = _read_topology(root / "sys/devices/system/cpu")
    return replace(
        described,
        core_of=core_of or described.core_of,
        sockets=len(packages) or described.sockets,
    )


def parse_cpuinfo(text: str) -> CpuDescription:
    """Parse the text of /proc/cpuinfo."""
    processors = [p for p in map(_fields, text.split("\n\n")) if "processor" in p]
    if not processors:
        return CpuDescription()
    names = [set((p.get("flags") or p.get("Features", "")).split()) for p in processors]
    common = set.intersection(*names)  # a thread may land on any core
    return CpuDescription(
        model=_model(processors[0]),
        isa=_in_order(_LINUX_ISA, common),
        core_of={
            int(p["processor"]): f"{p['physical id']}/{p['core id']}"
            for p in processors
            if p["processor"].isdecimal() and "physical id" in p and "core id" in p
        },
        sockets=len({p["physical id"] for p in processors if "physical id" in p}) or None,
    )


def parse_sysctl(text: str) -> CpuDescription:
    """Parse the output of `sysctl machdep.cpu hw.packages hw.optional` on macOS."""
    values = _fields(text)
    packages = values.get("hw.packages", "")
    return CpuDescription(
        model=values.get("machdep.cpu.brand_string"),
        isa=_in_order(_SYSCTL_ISA, {name for name, value in values.items() if value == "1"}),
        sockets=int(packages) if packages.isdecimal() else None,
    )


def _fields(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _model(processor: Mapping[str, str]) -> str | None:
    if "model name" in processor:
        return processor["model name"]
    if "CPU part" in processor:  # ARM gives numbers, not names
        return f"ARM implementer {processor.get('CPU implementer')} part {processor['CPU part']}"
    return None


def _in_order(names: Mapping[str, str], present: set[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ours for theirs, ours in names.items() if theirs in present))


def _read_topology(cpus: Path) -> tuple[dict[int, str], set[str]]:
    """Return each logical core's physical core, named by the threads that share it; the sockets."""
    core_of: dict[int, str] = {}
    packages: set[str] = set()
    for topology in cpus.glob("cpu[0-9]*/topology"):
        logical = topology.parent.name.removeprefix("cpu")
        siblings = _line(topology / "core_cpus_list") or _line(topology / "thread_siblings_list")
        if logical.isdecimal() and siblings:
            core_of[int(logical)] = siblings
        packages.add(_line(topology / "physical_package_id"))
    return core_of, packages - {"", "-1"}  # -1: not reported by the firmware


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def allowed_cores() -> Collection[int] | None:
    """Return the logical cores that this process may run on; None: unknown."""
    affinity: Collection[int] | None = None
    if sys.platform == "linux":
        affinity = os.sched_getaffinity(0)
    elif sys.platform == "win32":
        import psutil

        affinity = psutil.Process().cpu_affinity()
    return affinity


if sys.platform == "win32":
    import winreg

    def windows_processor_name() -> str:
        """Return the first processor's name in the registry. Raises OSError."""
        path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
