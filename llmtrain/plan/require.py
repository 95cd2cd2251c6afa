"""Check what a script requires of a machine (`device info --require`). Pure: from facts."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from llmtrain.choice import DeviceKind
from llmtrain.errors import UsageError
from llmtrain.machine.facts import AcceleratorKind, Facts
from llmtrain.plan.memory_fit import device_memory_bytes
from llmtrain.plan.numerics import missing_to_compile
from llmtrain.units import format_bytes, parse_bytes, parse_count

# Products of bf16 in the CPU's own instructions; others convert and multiply in fp32.
_BF16_ISA = {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"}
FEATURES = ("cpu", "cuda", "mps", "bf16", "amx", "compile")
_AMOUNTS: dict[str, Callable[[str], int]] = {"cores": parse_count, "memory": parse_bytes}
_ALL = ", ".join((*FEATURES, "cores:4", "memory:8GiB"))


@dataclass(frozen=True, slots=True)
class Requirement:
    """A feature by name, or the least amount of something."""

    name: str
    least: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A requirement, and the amount or feature that the machine has."""

    requirement: Requirement
    measured: bool | int
    found: str  # in words

    @property
    def is_met(self) -> bool:
        """True if the requirement is met."""
        least = self.requirement.least
        return bool(self.measured) if least is None else self.measured >= least


def parse_requirements(text: str) -> list[Requirement]:
    """Parse requirements such as `bf16,cuda,cores:4`. Raises UsageError."""
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"--require {text!r} names nothing", hint=f"one or more of {_ALL}")
    return [_parsed(word) for word in words]


def _parsed(word: str) -> Requirement:
    name, colon, amount = word.partition(":")
    if name in FEATURES and not colon:
        return Requirement(name)
    if name not in _AMOUNTS:
        known = [*FEATURES, *_AMOUNTS]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close and close[0] != name else f"one of {_ALL}"
        raise UsageError(f"--require {word}: unknown requirement", hint=hint)
    try:
        least = _AMOUNTS[name](amount)
    except ValueError as error:
        raise UsageError(f"--require {word}: {error}", hint=f"one of {_ALL}") from None
    if least < 1:
        raise UsageError(f"--require {word}: every machine has that", hint=f"one of {_ALL}")
    return Requirement(name, least)


def find(requirement: Requirement, facts: Facts, kind: DeviceKind) -> Finding:
    """Find what there is; bf16, compile and memory are those of the device that trains."""
    amount, found = _find(requirement.name, facts, kind)
    return Finding(requirement, amount, found)


def _find(name: str, facts: Facts, kind: DeviceKind) -> tuple[bool | int, str]:
    if name == "cpu":
        return True, "every machine has one"
    if name == "cuda":
        return _accelerator("cuda", facts)
    if name == "mps":
        return _accelerator("mps", facts)
    if name == "bf16":
        return _bf16(facts, kind)
    if name == "amx":
        return "amx_bf16" in facts.cpu.isa, _instructions(facts)
    if name == "compile":
        missing = missing_to_compile(facts, kind)
        return (
            missing is None,
            f"torch.compile on {kind} needs {missing}" if missing else f"works on {kind}",
        )
    if name == "cores":
        return facts.cpu.usable_cores, f"{facts.cpu.usable_cores} are usable"
    memory_bytes = device_memory_bytes(facts, kind)
    return memory_bytes, f"{kind} has {format_bytes(memory_bytes)}"


def _accelerator(kind: AcceleratorKind, facts: Facts) -> tuple[bool, str]:
    usable = facts.of_kind(kind)
    if usable:
        return True, ", ".join(gpu.name for gpu in usable)
    reasons = [reason for failed, reason in facts.failures if failed == kind]
    if kind == "cuda" and facts.unusable_gpu is not None:
        reasons.append(facts.unusable_gpu)
    return False, "; ".join(reasons) or "none was found"


def _bf16(facts: Facts, kind: DeviceKind) -> tuple[bool, str]:
    if kind == "cpu":
        return not _BF16_ISA.isdisjoint(facts.cpu.isa), _instructions(facts)
    gpus = facts.of_kind(kind)
    without = [gpu.name for gpu in gpus if not gpu.supports_bf16]
    return not without, f"not in {', '.join(without)}" if without else f"in every {kind} device"


def _instructions(facts: Facts) -> str:
    return f"the cpu has {', '.join(facts.cpu.isa) or 'no instruction sets that are known'}"
