"""Compare the rate of a session's first steps with the one that was forecast for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmtrain.machine.facts import was_contended
from llmtrain.units import counted, format_count, format_duration

CHECKED_STEPS = 10  # after which a session's rate is known
_NEAR = 0.25  # of the forecast rate: what is no further from it needs no remark


@dataclass(frozen=True, slots=True)
class RateDifference:
    """A rate that is far from the forecast one, and what follows from it for the run."""

    after_step: int
    tokens_per_s: float
    forecast_tokens_per_s: float
    ran_share: float  # of their runnable time in which the threads had a core
    remaining_s: float | None  # None: unknown, as the length of the run is
    horizon_steps: int | None  # that a time limit leaves room for; None: there is none

    @property
    def is_contended(self) -> bool:
        """True if other programs kept the cores busy: the forecast may be right."""
        return was_contended(self.ran_share)

    @property
    def line(self) -> str:
        """The message for people."""
        rates = [format_count(round(r)) for r in (self.tokens_per_s, self.forecast_tokens_per_s)]
        text = f"the first steps made {rates[0]} tokens/s, and {rates[1]} were forecast"
        if self.horizon_steps is not None:
            text += f": the time is enough for about {counted(self.horizon_steps, 'step')}"
        elif self.remaining_s is not None:
            text += f": about {format_duration(self.remaining_s)} are left"
        if self.is_contended:
            waited = f"{1 - self.ran_share:.0%}"
            return f"{text}; threads waited for a core {waited} of the time (other programs)"
        return f"{text}; a step is timed again for the next run"


CorrectForecast = Callable[[RateDifference], None]


def rate_difference(
    tokens_per_s: float,
    forecast_tokens_per_s: float,
    *,
    after_step: int,
    ran_share: float,
    remaining_s: float | None,
    horizon_steps: int | None,
) -> RateDifference | None:
    """Return how a rate differs from the forecast one; None if by no more than a quarter."""
    if abs(tokens_per_s / forecast_tokens_per_s - 1) <= _NEAR:
        return None
    return RateDifference(
        after_step=after_step,
        tokens_per_s=tokens_per_s,
        forecast_tokens_per_s=forecast_tokens_per_s,
        ran_share=ran_share,
        remaining_s=remaining_s,
        horizon_steps=horizon_steps,
    )
