"""Plans that compute the same step in less memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llmtrain.choice import ActivationCheckpointing, Choice
from llmtrain.plan.planner import Plan


def smaller_plan(plan: Plan, reason: str) -> Plan | None:
    """Return the next smaller plan; None: there is none. `reason` is given for the change.

    The micro-batch is halved at least, with more accumulation in turn; a micro-batch of one
    sequence gets full activation checkpointing.
    """
    micro_batch, checkpointing = plan.micro_batch.value, plan.activation_checkpointing.value
    if plan.device.value == "cpu" and plan.compile.value:
        # Other shapes are compiled again, and the C++ compiler takes hundreds of MB.
        eager = Choice(False, "compiling again would take memory that is short")
        plan = replace(plan, compile=eager)
    if micro_batch > 1:
        windows = micro_batch * plan.accumulation.value
        less = max(n for n in range(1, micro_batch // 2 + 1) if windows % n == 0)
        return replace(
            plan,
            micro_batch=Choice(less, f"{reason}; it was {micro_batch}"),
            accumulation=Choice(
                windows // less, f"{windows} windows per step as before, {less} at a time"
            ),
        )
    if checkpointing != "full":
        full: Choice[ActivationCheckpointing] = Choice(
            "full", f"{reason} with a micro-batch of one sequence; it was {checkpointing}"
        )
        return replace(plan, activation_checkpointing=full)
    return None


def smaller_plans(plan: Plan) -> Iterator[Plan]:
    """Yield every plan smaller than this one, the largest first."""
    while (less := smaller_plan(plan, "less memory")) is not None:
        yield less
        plan = less
