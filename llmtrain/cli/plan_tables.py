"""A plan and what it follows from, shown the same way by every command that shows one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from llmtrain.cli.tables import plain_value, rows_table
from llmtrain.engine.explain import Explained
from llmtrain.machine.assume import AssumedMachine
from llmtrain.plan.forecast import Figure
from llmtrain.plan.planned import Planned
from llmtrain.profile.setting import CHOSEN
from llmtrain.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from llmtrain.cli.output import Part

# How origins start that are neither the schema nor the profile's file.
_REQUESTED = ("--", "argument ", "environment ", CHOSEN)


def explained_parts(explained: Explained) -> Iterator[Part]:
    """Yield the profile, the values set by the user, the plan, its memory and its forecast."""
    yield f"profile {explained.profile.value}: {explained.profile.reason}"
    yield ""
    yield from decision_parts(explained)
    yield ""
    yield from prediction_parts(explained.planned)
    yield ""
    columns = ("figure", "value", "is", "from")
    yield rows_table("expected", columns, forecast_rows(explained))


def assumed_parts(assumed: AssumedMachine | None) -> Iterator[Part]:
    """Yield the assumed machine and what its SPEC leaves open; nothing for this machine."""
    if assumed is not None:
        yield from assumed_lines(assumed)
        yield ""


def decision_parts(explained: Explained) -> Iterator[Part]:
    """Yield the values that options and environment set, if any, and the plan."""
    requested = [
        (path, plain_value(value), origin)
        for path, value, origin in explained.settings()
        if origin.startswith(_REQUESTED)
    ]
    if requested:
        yield rows_table("requested", ("key", "value", "from"), requested)
        yield ""
    yield rows_table("plan", ("decision", "value", "from", "why"), plan_rows(explained))


def prediction_parts(planned: Planned) -> Iterator[Part]:
    """Yield the predicted memory, whether it fits, and what was measured by the same plan."""
    sizes = {**planned.prediction.items(), "limit": planned.limit_bytes}
    rows = [(name.removesuffix("_bytes"), format_bytes(size)) for name, size in sizes.items()]
    yield rows_table("predicted memory", ("part", "size"), rows, justify="right")
    yield fits_line(planned)
    if planned.last_run is not None:
        predicted_bytes = planned.prediction.measured_on(planned.plan.device.value)
        error = predicted_bytes / planned.last_run.peak_memory_bytes - 1
        yield (
            f"measured: {format_bytes(round(planned.last_run.peak_memory_bytes))}, predicted "
            f"{abs(error):.1%} {'more' if error > 0 else 'less'}; in a run of "
            f"{planned.last_run.steps:.0f} steps with this plan on this machine"
        )


def forecast_rows(explained: Explained) -> Iterator[tuple[str, str, str, str]]:
    """Yield each figure: name, value, kind of source, and what it was computed from."""
    figures = explained.forecast.figures()
    for name in (field.name for field in fields(explained.forecast)):
        label = name.removesuffix("_bytes")
        if name in figures:
            figure = figures[name]
            yield label, figure_text(name, figure), figure.source, figure.how
        else:
            yield label, "unknown", "", ""


def figure_text(name: str, figure: Figure) -> str:
    """Return a figure in its unit; a range as `low to high`."""
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
    """Return the assumed machine and what its SPEC leaves open, a line each."""
    head = f"assumed machine {assumed.spec}, not this one; beyond that it is assumed:"
    return [head, *(f"  {text}" for text in assumed.assumptions)]


def fits_line(planned: Planned) -> str:
    """Return the predicted memory, the limit, and the plan in a line."""
    plan = planned.plan
    verdict = "fits" if planned.prediction.total_bytes <= planned.limit_bytes else "does not fit"
    return (
        f"{verdict}: {format_bytes(planned.prediction.total_bytes)} of "
        f"{format_bytes(planned.limit_bytes)} on {plan.device.value}, "
        f"micro-batch {plan.micro_batch.value} × {planned.workload.shape.context} tokens "
        f"in {plan.precision.value}"
    )


def plan_rows(explained: Explained) -> Iterator[tuple[str, str, str, str]]:
    """Yield each decision: name, value, who asked for it, and why."""
    for name, choice, origin in explained.decisions():
        yield name, plain_value(choice.value), origin, choice.reason
