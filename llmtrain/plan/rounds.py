"""Decide how many steps ranks take by themselves between two exchanges. Pure.

    averaging in every step   a / (a + step_s)          of the time, of gradients in fp32
    rounds of N steps         s / (s + N · step_s)      of what weights moved, in their precision

a and s are the seconds of an exchange between the ranks, as if nothing ran beside it. Rounds cost
some loss: in short trainings none to 1.1% with Muon inside, and 2.8% with AdamW, the mean of three
seeds. By rule 1.2 of `llmtrain.recipe.model_size` a run that trains on a quarter more tokens gains
about 2.5%, and so rounds begin where averaging takes a quarter of the time; with AdamW they gain
little there, which the reason says. They are as short as keeps their exchanges
below a twentieth of it, and never shorter or longer than those whose loss was compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmtrain.choice import Choice, Precision, Sharding
from llmtrain.plan.tensor_bytes import FP32_BYTES, HALF_BYTES
from llmtrain.plan.workload import Workload
from llmtrain.units import format_bytes, format_duration

MOST_AVERAGING_SHARE = 0.25
_FEW_SHARE = 0.05
_COST_WITH_ADAMW = "; with AdamW inside, rounds cost small models 3% of the loss, with Muon none"
SHORTEST_ROUND, LONGEST_ROUND = 10, 30  # in steps


@dataclass(frozen=True, slots=True)
class Exchange:
    """The speed at which ranks add up tensors: a start, and bytes a second."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, size_bytes: float) -> float:
        """Return how long ranks take to add up tensors of this size."""
        return self.latency_s + size_bytes / self.bytes_per_s


def planned_sync_every(
    workload: Workload, processes: int, sharding: Sharding, precision: Precision
) -> Choice[int]:
    """Return the steps between two exchanges, as far as they are known before the ranks meet."""
    if not workload.sync_is_open:
        is_every = workload.sync_every == 1
        why = "gradients are averaged in every step" if is_every else "asked for"
        return Choice(workload.sync_every, why)
    why_not = why_no_rounds(processes, sharding, precision)
    return Choice(1, why_not or "auto: decided when the ranks meet, by the time of an exchange")


def why_no_rounds(processes: int, sharding: Sharding, precision: Precision) -> str | None:
    """Return why ranks cannot take steps of their own, whatever an exchange takes; None: they can.

    The profile refuses other reasons.
    """
    if processes == 1:
        return "one process trains alone"
    if sharding != "replicate":
        return "a sharded model's processes need each other in every step"
    if precision == "fp16":
        return "fp16 needs a loss scale that all processes share in every step"
    return None


def choose_sync_every(
    workload: Workload, step_s: float | None, exchange: Exchange, between: str = "these ranks"
) -> Choice[int]:
    """Choose averaging in every step where it costs little, else a round's length.

    `step_s`: of a step's computation; None: not known.
    """
    if step_s is None:
        return Choice(1, "the time of a step is not measured")
    size_bytes = FP32_BYTES * workload.trained_parameters
    sync_bytes = size_bytes
    if workload.sync_precision == "bf16":
        sync_bytes = HALF_BYTES * workload.trained_parameters
    average_s, sync_s = exchange.seconds(size_bytes), exchange.seconds(sync_bytes)
    averaging = average_s / (average_s + step_s)
    if averaging <= MOST_AVERAGING_SHARE:
        return Choice(
            1,
            f"averaging {format_bytes(size_bytes)} takes {_text(average_s)} between {between}, a "
            f"step {_text(step_s)}: {averaging:.0%} of the time in every step, and rounds are for "
            f"more than {MOST_AVERAGING_SHARE:.0%}",
        )
    every = round_steps(sync_s, step_s)
    share = sync_s / (sync_s + every * step_s)
    more = f"; longer rounds than {LONGEST_ROUND} are not measured" if share > _FEW_SHARE else ""
    if workload.optimizer == "adamw":
        more += _COST_WITH_ADAMW
    return Choice(
        every,
        f"a sync of {format_bytes(sync_bytes)} takes {_text(sync_s)} between {between}, a step "
        f"{_text(step_s)}: every {every} steps it is {share:.0%} of the time, averaging in every "
        f"step {averaging:.0%}{more}",
    )


def round_steps(sync_s: float, step_s: float) -> int:
    """Return the fewest steps beside which an exchange takes little of the time, within bounds."""
    wanted = math.ceil(sync_s / step_s * (1 / _FEW_SHARE - 1))
    return min(max(SHORTEST_ROUND, wanted), LONGEST_ROUND)


def _text(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else format_duration(seconds)
