"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up, then a shape. The factor multiplies every group's peak learning rate."""

    shape: Literal["wsd", "cosine", "linear"]
    warmup_steps: int
    decay_fraction: float  # of the horizon, for wsd
    final_fraction: float

    def factor(self, step: int, horizon_steps: int | None) -> float:
        """The factor for the update that leads from `step` to `step + 1`.

        Warm-up is linear and reaches 1 with its last step. `wsd` (warm-up, stable, decay: Hu et
        al. 2024) stays at 1 and falls linearly over the last `decay_fraction` of the horizon;
        `linear` and `cosine` (Loshchilov and Hutter 2017) fall from the end of warm-up. The last
        update is one step short of `final_fraction`, so that it still counts. With no horizon
        yet nothing falls.
        """
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if horizon_steps is None:
            return warmup
        return min(warmup, self._decayed(step, horizon_steps))

    def decay_start(self, horizon_steps: int) -> int:
        """The first step whose factor is below 1 for decay."""
        if self.shape == "wsd":
            return horizon_steps - round(self.decay_fraction * horizon_steps)
        return min(self.warmup_steps, horizon_steps)

    def _decayed(self, step: int, horizon_steps: int) -> float:
        start = self.decay_start(horizon_steps)
        if step < start or horizon_steps <= start:
            return 1.0
        done = min(1.0, (step - start) / (horizon_steps - start))
        cosine = self.shape == "cosine"
        left = 0.5 * (1.0 + math.cos(math.pi * done)) if cosine else 1.0 - done
        return self.final_fraction + (1.0 - self.final_fraction) * left
