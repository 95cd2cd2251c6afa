"""A plan and what it follows from, shown the same way by every command that shows one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from rich.table import Table

from llmtrain.cli.output import Output
from llmtrain.cli.tables import plain_value, rows_table
from llmtrain.engine.explain import Explained
from llmtrain.machine.assume import AssumedMachine
from llmtrain.plan.forecast import Figure
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.plan.planned import Planned
from llmtrain.units import format_bytes, format_count, format_duration

# How origins start that are neither the schema nor the profile's file.
_REQUESTED = ("--", "argument ", "environment ", "chosen: ")


def show_explained(output: Output, explained: Explained) -> None:
    """Print the profile, the values set by the user, the plan, its memory and its forecast."""
    output.result(f"profile {explained.profile.value}: {explained.profile.reason}")
    output.result("")
    show_decisions(output, explained)
    output.result("")
    show_prediction(output, explained)
    output.result("")
    show_forecast(output, explained)


def show_assumed(output: Output, assumed: AssumedMachine | None) -> None:
    """Print the assumed machine and what its SPEC leaves open; nothing for this machine."""
    if assumed is not None:
        for line in assumed_lines(assumed):
            output.result(line)
        output.result("")


def show_decisions(output: Output, explained: Explained) -> None:
    """Print the values that options and environment set, if any, and the plan."""
    requested = [
        (path, plain_value(value), origin)
        for path, value, origin in explained.settings()
        if origin.startswith(_REQUESTED)
    ]
    if requested:
        output.show(rows_table("requested", ("key", "value", "from"), requested))
        output.result("")
    output.show(rows_table("plan", ("decision", "value", "from", "why"), plan_rows(explained)))


def show_prediction(output: Output, explained: Explained) -> None:
    """Print the predicted memory and whether it fits."""
    planned = explained.planned
    output.show(prediction_table(planned.prediction, planned.limit_bytes))
    output.result(fits_line(planned))
    if (measured := measured_line(planned)) is not None:
        output.result(measured)


def show_forecast(output: Output, explained: Explained) -> None:
    """Print the predicted length, speed, disk space and loss, each with its source."""
    columns = ("figure", "value", "is", "from")
    output.show(rows_table("expected", columns, forecast_rows(explained)))


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


def prediction_table(prediction: MemoryPrediction, limit_bytes: int) -> Table:
    """Return the predicted memory, itemised, and the limit."""
    table = Table(title="predicted memory", title_justify="left", box=None, pad_edge=False)
    table.add_column("part", style="bold")
    table.add_column("size", justify="right", style="cyan")
    for name, size in prediction.items().items():
        table.add_row(name.removesuffix("_bytes"), format_bytes(size))
    table.add_row("limit", format_bytes(limit_bytes))
    return table


def measured_line(planned: Planned) -> str | None:
    """Return measured memory beside predicted; None if no run with this plan was measured."""
    if planned.last_run is None:
        return None
    predicted_bytes = planned.prediction.measured_on(planned.plan.device.value)
    error = predicted_bytes / planned.last_run.peak_memory_bytes - 1
    return (
        f"measured: {format_bytes(round(planned.last_run.peak_memory_bytes))}, predicted "
        f"{abs(error):.1%} {'more' if error > 0 else 'less'}; in a run of "
        f"{planned.last_run.steps:.0f} steps with this plan on this machine"
    )
