"""What is predicted of a run on machines that are not here, and what that rests on."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmtrain.errors import DoesNotFitError, UsageError
from llmtrain.machine.facts import Facts
from llmtrain.plan.planned import Planned
from llmtrain.plan.planner import make_plan
from llmtrain.plan.scaling import Hardware, StepPrediction, scaled_shape
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import ModelShape

_WIDTH_STEP, _WIDEST = 128, 65536
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(b|bit|B)(?:/s|ps)?", re.ASCII)
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", re.ASCII)
_TIME_SCALE = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_LONGEST_ROUND_TRIP_S = 10.0


@dataclass(frozen=True, slots=True)
class Assumption:
    """A quantity that the prediction rests on, and where it is from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """A plan for many machines, with what is predicted of it."""

    nodes: int
    ranks: int
    planned: Planned
    hardware: Hardware
    step: StepPrediction
    largest: ModelShape | None  # of the profile's proportions, that fits; None: the profile's own
    assumed: tuple[Assumption, ...]

    @property
    def has_gpus(self) -> bool:
        """True if GPUs compute."""
        return self.planned.plan.device.value == "cuda"

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of all ranks."""
        return self.planned.workload.tokens_per_step / self.step.step_s

    @property
    def utilisation(self) -> float:
        """The share of all ranks' peak that the model's own FLOPs are."""
        flops = self.tokens_per_s * self.planned.workload.flops_per_token
        return flops / self.ranks / self.hardware.peak_flops

    @property
    def hours(self) -> float | None:
        """The time of the whole run; None where its length is not known in tokens."""
        tokens = self.planned.workload.tokens
        return None if tokens is None else tokens / self.tokens_per_s / 3600

    @property
    def gpu_hours(self) -> float | None:
        """`hours`, of every GPU; None where there are none."""
        return None if self.hours is None or not self.has_gpus else self.ranks * self.hours


def parse_rate(text: str) -> float:
    """Return bytes a second of `400Gb` (bits) or `50GB`. Raises UsageError."""
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--network {text} is no rate", hint="--network 400Gb, in bits, or 50GB")
    return float(match[1]) * _SCALE[match[2]] / (1 if match[3] == "B" else 8)


def parse_round_trip_s(text: str) -> float:
    """Return the seconds of `0.2ms`. Raises UsageError."""
    match = _TIME.fullmatch(text.strip())
    seconds = None if match is None else float(match[1]) * _TIME_SCALE[match[2]]
    if seconds is None or seconds > _LONGEST_ROUND_TRIP_S:
        raise UsageError(
            f"--round-trip {text} is no time of up to {_LONGEST_ROUND_TRIP_S:g}s",
            hint="--round-trip 0.2ms, as ping shows it",
        )
    return seconds


def largest_that_fits(
    workload: Workload, facts: Facts, options: DeviceSection
) -> ModelShape | None:
    """Return the widest shape of the same proportions that fits; None if none wider does."""

    def fits(width: int) -> bool:
        shape = scaled_shape(workload.shape, width)
        try:
            make_plan(facts, options, replace(workload, shape=shape))
        except DoesNotFitError:
            return False
        return True

    first = workload.shape.hidden_size // _WIDTH_STEP + 1
    low, high = first - 1, _WIDEST // _WIDTH_STEP  # low fits, as the profile itself does
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * _WIDTH_STEP) else (low, middle - 1)
    return scaled_shape(workload.shape, low * _WIDTH_STEP) if low >= first else None
