"""Charts as inline SVG whose colours are the page's, drawn by matplotlib.

Text stays text, so that it can be read aloud, selected and enlarged.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from llmtrain.errors import UsageError
from llmtrain.report.curves import Curve, Mark
from llmtrain.units import format_bytes, format_count, format_duration

Amount = Literal["tokens", "seconds", "bytes", "number", "rate"]
_INCHES = (4.6, 2.7)
_AXES = (0.17, 0.18, 0.8, 0.78)  # left, bottom, width, height: room for labels, as shares
# Drawn in these, which no page shows: each becomes a variable of the style sheet.
_INK, _GRID, _PANEL = "#010203", "#010204", "#010205"
_SERIES = ("#010210", "#010211", "#010212", "#010213", "#010214", "#010215")
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)", _PANEL: "var(--panel)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)
}
_DASHES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
_MARKED = {"resumed": ":", "skipped": "-.", "rewound": "--"}
_MOST_TICKS = 5
_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
_MOST_MARKS = 40  # of a kind
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llmtrain",  # equal input, equal file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
}


@dataclass(frozen=True, slots=True)
class Band:
    """A range of values that was predicted."""

    name: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of curves. `faint`: one behind the others, such as the unsmoothed loss."""

    title: str
    x: Amount
    y: Amount
    y_label: str
    curves: tuple[Curve, ...]
    faint: Curve | None = None
    marks: tuple[Mark, ...] = ()
    level: tuple[str, float] | None = None  # a horizontal line and its name
    band: Band | None = None
    log_y: bool = False

    @property
    def is_empty(self) -> bool:
        """True if no curve has two points."""
        return all(len(each.xs) < 2 for each in self.curves)

    @property
    def description(self) -> str:
        """The chart in words, for those who do not see it."""
        parts = [
            f"{each.name}: from {_amount(each.ys[0], self.y)} to {_amount(each.ys[-1], self.y)}"
            for each in self.curves
            if each.ys
        ]
        if self.level is not None:
            parts.append(f"{self.level[0]}: {_amount(self.level[1], self.y)}")
        if (band := self.band) is not None:
            parts.append(
                f"{band.name}: {_amount(band.low, self.y)} to {_amount(band.high, self.y)}"
            )
        return f"{self.title}. {'; '.join(parts)}."


def require_plots() -> None:
    """Raise UsageError unless the libraries of the report are installed."""
    import importlib.util

    for name in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"the report needs {name}, which is not installed",
                hint="pip install 'llmtrain[report]'",
            )


def draw(chart: Chart, prefix: str) -> str:
    """Return the chart as an SVG element; its ids begin with `prefix`, unique on the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    out = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_INCHES)  # an engine that finds the margins takes half of the time
        axes = figure.add_axes(_AXES)
        _draw_curves(axes, chart)
        axes.set_xlabel("trained tokens" if chart.x == "tokens" else "time")
        axes.set_ylabel(chart.y_label)
        for axis, kind in ((axes.xaxis, chart.x), (axes.yaxis, chart.y)):
            if kind != "number":
                axis.set_major_formatter(partial(_tick, kind))
            low, high = axis.get_view_interval()
            if (step := tick_step(high - low, kind)) is not None:
                axis.set_major_locator(MultipleLocator(step))
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _inline(out.getvalue(), prefix, chart.description)


def _draw_curves(axes: object, chart: Chart) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    axes.grid(color=_GRID, linewidth=0.6)
    if chart.log_y:
        axes.set_yscale("log")
    if chart.faint is not None:
        axes.plot(chart.faint.xs, chart.faint.ys, color=_SERIES[0], alpha=0.25, linewidth=0.8)
    for number, each in enumerate(chart.curves):
        few = len(each.xs) <= 30
        axes.plot(
            each.xs,
            each.ys,
            label=_plain(each.name),
            color=_SERIES[number % len(_SERIES)],
            linestyle=_DASHES[number % len(_DASHES)],
            linewidth=1.6,
            marker="o" if few else None,
            markersize=3,
        )
    if chart.level is not None:
        name, value = chart.level
        axes.axhline(value, color=_INK, linestyle="--", linewidth=1, label=_plain(name))
    if chart.band is not None:
        axes.axhspan(
            chart.band.low,
            chart.band.high,
            color=_SERIES[1],
            alpha=0.3,
            linewidth=0,
            label=_plain(chart.band.name),
        )
    for kind, dash in _MARKED.items():
        at = [mark.tokens for mark in chart.marks if mark.kind == kind][:_MOST_MARKS]
        for number, tokens in enumerate(at):
            label = kind if number == 0 else None
            axes.axvline(tokens, color=_INK, linestyle=dash, linewidth=0.8, label=label)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(facecolor=_PANEL, edgecolor="none", framealpha=0.85, fontsize=8)
    _limit(axes, chart)


def _limit(axes: object, chart: Chart) -> None:
    """Set the range: from 0 for amounts; of losses without the steep first 2% of a long run."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    if chart.y in ("bytes", "rate"):
        axes.set_ylim(bottom=0)
    shown = [y for each in chart.curves for y in _after_start(each.ys)]
    if chart.y == "number" and not chart.log_y and shown:
        low, high = min(shown), max(shown)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)


def _after_start(ys: Sequence[float]) -> Sequence[float]:
    return ys[len(ys) // 50 :] if len(ys) > 50 else ys


def tick_step(span: float, kind: Amount) -> float | None:
    """Return the distance of ticks that people expect of times and sizes; None: any is fine.

    `span`: from the lowest to the highest value.
    """
    if kind == "seconds":
        steps = [*_TIME_STEPS_S, *(86400.0 * 2**power for power in range(20))]
    elif kind == "bytes":
        steps = [float(2**power) for power in range(60)]
    else:
        return None
    return next((step for step in steps if span / step <= _MOST_TICKS), None)


def _tick(kind: Amount, value: float, _position: int) -> str:
    if kind != "seconds":
        return _amount(value, kind)
    parts = [(value // 3600, "h"), (value % 3600 // 60, "m"), (value % 60, "s")]
    return " ".join(f"{part:g}{unit}" for part, unit in parts if part) or "0"


def _plain(text: str) -> str:
    """Return a label that matplotlib neither hides nor reads as mathematics."""
    return text.replace("$", r"\$").lstrip("_") or "-"


def _amount(value: float, kind: Amount) -> str:
    """Return a number with its unit, short."""
    if kind == "seconds":
        return format_duration(max(0.0, value))
    if kind == "bytes":
        return format_bytes(max(0, round(value)))
    if kind in ("tokens", "rate"):
        return format_count(round(value)) + ("/s" if kind == "rate" else "")
    return f"{value:.4g}"


def _inline(document: str, prefix: str, description: str) -> str:
    """Return the svg element alone, with the page's colours, own ids and a description."""
    from markupsafe import escape

    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    label = f'<svg role="img" aria-label="{escape(description)}"'
    return label + svg.removeprefix("<svg")
