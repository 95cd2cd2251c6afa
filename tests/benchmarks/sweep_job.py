"""One training of a sweep, and its result, as `sweeps/results.jsonl` has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tests.benchmarks.documents import Quality


class SweepJob(BaseModel):
    """What was trained. `settings` are a profile's, dotted; `data` is a corpus by name.

    `growth`: from which share of the tokens on a step has how many of them, instead of the
    profile's. `learning_rate` is the naive baseline's. `variant` is one of `VARIANTS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str
    profile: str
    tokens: int
    system: Literal["ours", "naive"] = "ours"
    settings: dict[str, Any] = {}
    growth: tuple[tuple[float, int], ...] = ()
    variant: str | None = None
    learning_rate: float = 6e-4
    evaluation_tokens: int = 524_288
    curve_points: int = 0  # only 0 is trained today

    @property
    def assignments(self) -> tuple[str, ...]:
        """The settings as `--set` takes them."""
        return tuple(f"{key}={value}" for key, value in self.settings.items())


class SweepResult(BaseModel):
    """A job and what came out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: SweepJob
    quality: Quality
    parameters: int
    device: str
    torch: str


def read_results(path: Path) -> list[SweepResult]:
    """Return what is known so far."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [SweepResult.model_validate_json(line) for line in lines]
