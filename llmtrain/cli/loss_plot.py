"""Loss curves in the terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmtrain.units import format_count

if TYPE_CHECKING:
    from rich.text import Text

    from llmtrain.train.run_directory.history import RunHistory

_BLANK = "\u2800"  # of Braille, which is no space to programs that strip lines
_ROWS = 12
_WIDEST_COLUMNS = 100
_MARGIN_COLUMNS = 26  # labels of the axes
_NARROWEST_COLUMNS = 30
_SHARE_LEFT_OUT = 50  # the first 2% of a long run fall steeply, and would flatten the rest


def loss_plot(history: RunHistory, columns: int) -> Text | None:
    """Return training and validation loss against tokens, at most `columns` wide.

    None where there is nothing to join by a line, no room, or where stdout has no Braille
    characters to draw with.
    """
    from rich.text import Text

    width = min(columns, _WIDEST_COLUMNS) - _MARGIN_COLUMNS
    steps = history.steps[len(history.steps) // _SHARE_LEFT_OUT :]
    training = [(e.tokens, e.loss) for e in steps if math.isfinite(e.loss + e.tokens)]
    tested = [(e.tokens, e.val_loss) for e in history.evaluations if math.isfinite(e.val_loss)]
    if len(training) < 2 or width < _NARROWEST_COLUMNS or not _can_draw():
        return None
    figure = _figure(width, [loss for _, loss in training + tested])
    figure.set_x_limits(min_=0.0, max_=max(tokens for tokens, _ in training + tested))
    figure.plot(*zip(*training, strict=True), lc="blue", label="training")
    if tested:
        figure.scatter(*zip(*tested, strict=True), lc="yellow", marker="o", label="validation")
    legend = "loss in nats/token: line training" + (", o validation" if tested else "")
    return Text.from_ansi(f"{_shown(figure)}\n{legend}")


def scatter_plot(
    xs: Sequence[float],
    ys: Sequence[float],
    columns: int,
    title: str,
    base: float | None = None,
) -> Text | None:
    """Return points above their title; None without room or Braille characters.

    `base`: the xs are logarithms to it, and are labelled by what they are of.
    """
    from rich.text import Text

    width = min(columns, _WIDEST_COLUMNS) - _MARGIN_COLUMNS
    if width < _NARROWEST_COLUMNS or not _can_draw():
        return None
    figure = _figure(width, ys)
    room = 0.05 * (max(xs) - min(xs)) or 0.5
    figure.set_x_limits(min_=min(xs) - room, max_=max(xs) + room)
    figure.x_ticks_fkt = lambda value, _: f"{value if base is None else base**value:.3g}"
    figure.x_label, figure.y_label = "", "bits/byte"
    figure.scatter(xs, ys, lc="yellow", marker="o")
    return Text.from_ansi(f"{_shown(figure)}\n{title}")


def _shown(figure: Any) -> str:
    text: str = figure.show().replace(_BLANK, " ").replace("> ()", ">")  # an axis without a label
    return "\n".join(line.rstrip() for line in text.splitlines())


def _figure(width: int, ys: Sequence[float]) -> Any:
    """Return an empty figure whose y axis fits the values."""
    from plotille import Figure

    figure = Figure()
    figure.width, figure.height = width, _ROWS
    figure.color_mode = "names"
    figure.origin = False
    figure.x_label, figure.y_label = "tokens", "loss"
    low, high = min(ys), max(ys)
    room = 0.02 * (high - low) or 0.5
    figure.set_y_limits(min_=low - room, max_=high + room)
    figure.x_ticks_fkt = lambda value, _: format_count(round(value))
    figure.y_ticks_fkt = lambda value, _: f"{value:.3f}"
    return figure


def _can_draw() -> bool:
    try:
        "\u28ff".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
