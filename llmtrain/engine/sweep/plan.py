"""The plan of a sweep: a YAML file that says what is varied, and the trials that follow."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from llmtrain.engine.request import TrainRequest
from llmtrain.errors import UsageError
from llmtrain.profile.quantities import PositiveInt
from llmtrain.profile.requirements import requirement
from llmtrain.profile.schema import NAME_PATTERN, Section
from llmtrain.profile.yaml_text import parse_document
from llmtrain.untrusted import problem_of, read_bytes

_PLAN_BYTES = 1 << 20
_MOST_TRIALS = 10_000
Choices = Annotated[tuple[Any, ...], Field(min_length=1)]


class Range(Section):
    """Values drawn between two ends, evenly or evenly in their logarithm."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} is not above 0, which log needs")
        return self

    def draw(self, generator: random.Random) -> float | int:
        """Return a value of the range."""
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        drawn = generator.uniform(*ends)
        return self.rounded(math.exp(drawn) if self.log else drawn)

    def rounded(self, value: float) -> float | int:
        """Return the value within the range; four significant digits are plenty for a setting."""
        value = min(max(float(f"{value:.4g}"), self.low), self.high)
        return round(value) if self.integer else value


class SweepPlan(Section):
    """The settings that trials share, and those that vary: combinations of `grid`, or draws."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "sweep"
    profile: str | None = None
    data: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)  # of every trial, by dotted key
    grid: dict[str, Choices] = Field(default_factory=dict)
    random: dict[str, Range | Choices] = Field(default_factory=dict)
    trials: PositiveInt | None = None  # how many draws
    method: Literal["random", "tpe"] = "random"  # tpe: draws follow the results, by Optuna
    seed: int = 0  # of the draws
    stop_early: bool = True

    @model_validator(mode="after")
    def _varies_something(self) -> SweepPlan:
        if bool(self.grid) == bool(self.random):
            raise ValueError("give either grid or random, with at least one setting")
        if bool(self.random) != (self.trials is not None):
            raise ValueError("random needs trials, how many to draw; grid has its own number")
        if self.method == "tpe" and not self.random:
            raise ValueError("method: tpe needs random, the settings to search")
        count = self.trials or math.prod(map(len, self.grid.values()))
        if count > _MOST_TRIALS:
            raise ValueError(f"{count} trials are more than {_MOST_TRIALS}")
        if twice := self.settings.keys() & (self.grid.keys() | self.random.keys()):
            raise ValueError(f"{min(twice)} is in settings and is varied too")
        return self


@dataclass(frozen=True, slots=True)
class Trial:
    """A training of the sweep: its number, and the settings that were varied."""

    number: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its directory in the sweep."""
        return f"trial-{self.number:03d}"


def read_plan(path: Path) -> SweepPlan:
    """Read a plan; its default name is that of the file. Raises UsageError."""
    try:
        text = read_bytes(path, _PLAN_BYTES, follow_links=True).decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {problem_of(error)}") from None
    values = parse_document(text, str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a plan: it has no keys", hint=_EXAMPLE)
    try:
        return SweepPlan.model_validate_json(json.dumps({"name": path.stem, **values}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{path}: {where + ': ' if where else ''}{requirement(first)}", hint=_EXAMPLE
        ) from None


def trials_of(plan: SweepPlan) -> list[Trial]:
    """Return every trial in order. A larger number of draws keeps those before."""
    if plan.grid:
        rows = itertools.product(*plan.grid.values())
        return [
            Trial(number, dict(zip(plan.grid, row, strict=True))) for number, row in enumerate(rows)
        ]
    return [Trial(number, _drawn(plan, number)) for number in range(plan.trials or 0)]


def _drawn(plan: SweepPlan, number: int) -> dict[str, Any]:
    generator = random.Random(f"{plan.seed}/{number}")
    return {
        key: each.draw(generator) if isinstance(each, Range) else generator.choice(each)
        for key, each in plan.random.items()
    }


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as `--set` takes them."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]


def require_valid(plan: SweepPlan, trials: list[Trial], more: Mapping[str, Any]) -> None:
    """Raise UsageError, naming the trial, unless every trial has a valid profile."""
    for trial in trials:
        request = TrainRequest(
            plan.profile, assignments({**plan.settings, **more, **trial.settings})
        )
        try:
            request.load(plan.profile)
        except UsageError as error:
            raise UsageError(f"{trial.name}: {error.message}", hint=error.hint) from None


_EXAMPLE = "a plan: {profile: cpu-tiny, grid: {optim.learning_rate: [0.01, 0.02]}}"
