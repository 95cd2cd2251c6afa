"""A plan and all that it follows from, the same in every command that shows one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmtrain.cli.output import Output
from llmtrain.cli.render import (
    measured_line,
    plain_value,
    prediction_document,
    prediction_table,
    rows_table,
)
from llmtrain.engine.explain import Explained
from llmtrain.machine.assume import AssumedMachine
from llmtrain.plan.forecast import Figure
from llmtrain.plan.planned import Planned
from llmtrain.units import format_bytes, format_count, format_duration

# How origins begin that are neither the schema nor the profile's file.
_SAID = ("--", "argument ", "environment ", "chosen: ")


def show_explained(output: Output, explained: Explained) -> None:
    """The profile, what was said of it, the plan, its memory and its course, as the result."""
    output.result(f"profile {explained.profile.value}: {explained.profile.reason}")
    output.result("")
    show_decisions(output, explained)
    output.result("")
    show_prediction(output, explained)
    output.result("")
    show_forecast(output, explained)


def show_assumed(output: Output, assumed: AssumedMachine | None) -> None:
    """Where the machine is assumed: that it is, and all that was not said of it."""
    if assumed is not None:
        for line in assumed_lines(assumed):
            output.result(line)
        output.result("")


def show_decisions(output: Output, explained: Explained) -> None:
    """What was said of the profile, where anything was, and the plan."""
    said = [
        (path, plain_value(value), origin)
        for path, value, origin in explained.settings()
        if origin.startswith(_SAID)
    ]
    if said:
        output.show(rows_table("said", ("key", "value", "from"), said))
        output.result("")
    output.show(rows_table("plan", ("decision", "value", "from", "why"), plan_rows(explained)))


def show_prediction(output: Output, explained: Explained) -> None:
    """Where the memory goes, and that it suffices."""
    planned = explained.planned
    output.show(prediction_table(planned.prediction, planned.limit_bytes))
    output.result(fits_line(planned))
    if (measured := measured_line(planned)) is not None:
        output.result(measured)


def show_forecast(output: Output, explained: Explained) -> None:
    """What the run will take and come to, and how each figure is known."""
    columns = ("figure", "value", "is", "from")
    output.show(rows_table("expected", columns, forecast_rows(explained)))


def forecast_rows(explained: Explained) -> Iterator[tuple[str, str, str, str]]:
    """Each figure, its value, how it is known, and from what."""
    figures = explained.forecast.figures()
    for name in explained.forecast.document():
        label = name.removesuffix("_bytes")
        if name in figures:
            figure = figures[name]
            yield label, figure_text(name, figure), figure.source, figure.how
        else:
            yield label, "unknown", "", ""


def figure_text(name: str, figure: Figure) -> str:
    """A figure in its own unit, with its range where it has one."""
    numbers = [figure.value] if figure.low is None else [figure.low, figure.high or figure.value]
    if name.endswith("_bytes"):
        shown = [format_bytes(round(number)) for number in numbers]
    elif name == "seconds":
        shown = [format_duration(number) for number in numbers]
    elif name.endswith("_bpb"):
        shown = [f"{number:.3g}" for number in numbers]
    else:
        shown = [format_count(round(number)) for number in numbers]
    return " to ".join(shown)


def assumed_lines(assumed: AssumedMachine) -> list[str]:
    """That the machine is assumed, and what of it nobody said."""
    head = f"assumed machine {assumed.spec}: not this one; what was not said of it:"
    return [head, *(f"  {text}" for text in assumed.assumptions)]


def fits_line(planned: Planned) -> str:
    """The memory that is predicted, the limit, and what it is for."""
    plan = planned.plan
    verdict = "fits" if planned.prediction.total_bytes <= planned.limit_bytes else "does not fit"
    return (
        f"{verdict}: {format_bytes(planned.prediction.total_bytes)} of "
        f"{format_bytes(planned.limit_bytes)} on {plan.device.value}, "
        f"micro-batch {plan.micro_batch.value} × {planned.workload.shape.context} tokens "
        f"in {plan.precision.value}"
    )


def explained_document(explained: Explained) -> dict[str, Any]:
    """All of it: the assumed machine, the profile's values, the plan and its memory."""
    settings = {
        path: {"value": value, "origin": origin} for path, value, origin in explained.settings()
    }
    profile = {"value": explained.profile.value, "reason": explained.profile.reason}
    return {
        "assumed": assumed_document(explained.assumed),
        "profile": profile,
        "settings": settings,
        **decisions_document(explained),
    }


def decisions_document(explained: Explained) -> dict[str, Any]:
    """What was decided, and the memory that it is predicted to take."""
    derived = {
        path: {"value": choice.value, "reason": choice.reason}
        for path, choice in explained.derived().items()
    }
    plan = {
        name: {"value": choice.value, "reason": choice.reason, "origin": origin}
        for name, choice, origin in explained.decisions()
    }
    foreseen = {"forecast": explained.forecast.document()}
    return {"derived": derived, "plan": plan, **prediction_document(explained.planned), **foreseen}


def assumed_document(assumed: AssumedMachine | None) -> dict[str, Any] | None:
    """The SPEC and what it leaves open; None for the machine that is here."""
    if assumed is None:
        return None
    return {"spec": assumed.spec, "assumptions": list(assumed.assumptions)}


def plan_rows(explained: Explained) -> Iterator[tuple[str, str, str, str]]:
    """Each decision, its value, who asked for it, and why."""
    for name, choice, origin in explained.decisions():
        yield name, plain_value(choice.value), origin, choice.reason
