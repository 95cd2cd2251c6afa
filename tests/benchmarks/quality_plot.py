"""Bits a byte against seconds and against tokens. Needs matplotlib, of the extra `bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtrain.units import format_count
from tests.benchmarks.documents import Quality


def draw(points: Sequence[tuple[str, Quality]], title: str, path: Path) -> None:
    """The picture is at `path`. Raises SystemExit where matplotlib is missing.

    Trainings of one system to several times are joined by a line; what was measured on the way of
    one training by a dotted one.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        raise SystemExit("a plot needs matplotlib: pip install 'llmtrain[bench]'") from None
    figure = Figure(figsize=(9, 4), layout="constrained")
    by_time, by_tokens = figure.subplots(1, 2, sharey=True)
    for number, system in enumerate(dict.fromkeys(name for name, _ in points)):
        found = [quality for name, quality in points if name == system]
        _draw_system(by_time, system, found, "seconds", f"C{number}")
        _draw_system(by_tokens, system, found, "tokens", f"C{number}")
    for axes, label in ((by_time, "seconds"), (by_tokens, "tokens")):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _position: format_count(round(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        axes.grid(visible=True, which="both", alpha=0.3)
    by_time.set_ylabel("bits per byte")
    by_time.legend()
    figure.suptitle(title)
    figure.savefig(path)


def _draw_system(axes: Any, system: str, found: list[Quality], what: str, color: str) -> None:
    found = sorted(found, key=lambda quality: quality.seconds)
    ends = [getattr(quality, what) for quality in found]
    axes.plot(ends, [q.bits_per_byte for q in found], "o-", color=color, label=system)
    for quality in found:
        way = [(getattr(point, what), point.bits_per_byte) for point in quality.curve]
        if way:
            axes.plot(*zip(*way, strict=True), ".:", color=color)
