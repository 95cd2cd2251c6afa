"""Plans that need less memory for the same step. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llmtrain.choice import ActivationCheckpointing, Choice
from llmtrain.plan.planner import Plan


def smaller_plan(plan: Plan, reason: str) -> Plan | None:
    """The next smaller plan, with the reason for it; None: there is none.

    At most half as many sequences at once and as many more times, so that a step reads what it
    did; from one sequence on, everything that can be computed again is.
    """
    micro_batch, checkpointing = plan.micro_batch.value, plan.activation_checkpointing.value
    if plan.device.value == "cpu" and plan.compile.value:
        # For other shapes the C++ compiler would be started: it takes hundreds of MB.
        eager = Choice(False, "compiling anew would take memory that is short")
        plan = replace(plan, compile=eager)
    if micro_batch > 1:
        windows = micro_batch * plan.accumulation.value
        less = max(n for n in range(1, micro_batch // 2 + 1) if windows % n == 0)
        return replace(
            plan,
            micro_batch=Choice(less, f"{reason}; it was {micro_batch}"),
            accumulation=Choice(
                windows // less, f"{windows} windows a step, as before, {less} at once"
            ),
        )
    if checkpointing != "full":
        full: Choice[ActivationCheckpointing] = Choice(
            "full", f"{reason} with one sequence at once; it was {checkpointing}"
        )
        return replace(plan, activation_checkpointing=full)
    return None


def smaller_plans(plan: Plan, reason: str = "") -> Iterator[Plan]:
    """Every plan smaller than this one, the largest first."""
    while (less := smaller_plan(plan, reason)) is not None:
        yield less
        plan = less
