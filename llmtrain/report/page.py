"""The report as one HTML file: no script, no request, and samples that cannot do anything.

Every value is escaped by Jinja2; control and direction characters are shown as codes; and the
page's own policy forbids whatever might slip through.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llmtrain
from llmtrain.files import escape_names
from llmtrain.report.content import RunContent
from llmtrain.report.plots import Chart, draw
from llmtrain.report.values import Row

if TYPE_CHECKING:
    from jinja2 import Environment

# Control characters but tab and line end, halves of surrogate pairs, and what turns text around.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Several runs in one table, charts of all, and a sentence on each."""

    names: tuple[str, ...]
    rows: list[Row]  # name, then a value for each run
    charts: list[Chart]
    verdicts: list[Row]  # run, outcome, reason


def render_report(
    runs: Sequence[RunContent],
    side_by_side: SideBySide | None = None,
    *,
    written: str,
    refresh_s: int | None = None,
) -> str:
    """Return the page. `written`: the date that it says; `refresh_s`: it loads itself again."""
    charts = {id(chart): number for number, chart in enumerate(_all_charts(runs, side_by_side))}
    page = _environment().get_template("report.html")

    def svg(chart: Chart) -> Any:
        from markupsafe import Markup

        return Markup(draw(chart, f"chart{charts[id(chart)]}"))  # its labels are escaped by draw

    names = [run.name for run in runs]
    return page.render(
        title=names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more",
        runs=runs,
        side_by_side=side_by_side,
        svg=svg,
        written=written,
        refresh_s=refresh_s,
        version=llmtrain.__version__,
    )


def visible(value: Any) -> Any:
    """Return text with characters that are not seen, or turn others around, as codes."""
    if type(value) is not str:
        return value
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", escape_names(value))


def _all_charts(runs: Sequence[RunContent], side_by_side: SideBySide | None) -> list[Chart]:
    own = [chart for run in runs for chart in run.charts]
    return own if side_by_side is None else side_by_side.charts + own


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("llmtrain.report"),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
