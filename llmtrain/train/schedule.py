"""Learning-rate schedules: pure functions of the step and of the share of the run that is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_LONGEST_WARMUP = 0.1  # of the run


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up, then decay of a shape. The factor multiplies every group's peak learning rate."""

    shape: Literal["wsd", "cosine", "linear"]
    warmup_steps: int
    decay_fraction: float  # of the run, for wsd
    final_fraction: float

    def factor(self, step: int, progress: float | None) -> float:
        """Return the factor for the update from `step` to `step + 1`.

        `progress` is the share of the run's steps or time before it; None: unknown, no decay.
        Warm-up is linear and reaches 1 at its last step, or after a tenth of a shorter run. `wsd`
        (warm-up, stable, decay: Hu et al. 2024) stays at 1 and decays linearly over the last
        `decay_fraction`; `linear` and `cosine` (Loshchilov and Hutter 2017) decay all the way. The
        lower of warm-up and decay applies. The last update is one step short of `final_fraction`,
        so that it is not wasted if that is 0.
        """
        warmup = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        if progress is None:
            return min(1.0, warmup)
        return min(1.0, max(warmup, progress / _LONGEST_WARMUP), self._decayed(progress))

    def _decayed(self, progress: float) -> float:
        start = 1.0 - self.decay_fraction if self.shape == "wsd" else 0.0
        if progress <= start or start == 1.0:
            return 1.0
        done = min(1.0, (progress - start) / (1.0 - start))
        factor = 0.5 * (1.0 + math.cos(math.pi * done)) if self.shape == "cosine" else 1.0 - done
        return self.final_fraction + (1.0 - self.final_fraction) * factor
