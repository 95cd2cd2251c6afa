from __future__ import annotations

import re

import pytest

pytest.importorskip("matplotlib")

from llmtrain.report.curves import Curve, Mark
from llmtrain.report.plots import Amount, Chart, draw, tick_step


def chart(**changes: object) -> Chart:
    values = {
        "title": "Loss by tokens",
        "x": "tokens",
        "y": "number",
        "y_label": "nats per token",
        "curves": (Curve("training", (0, 1e6, 2e6), (5.0, 3.0, 2.5)),),
    }
    return Chart(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("highest", "kind", "step"),
    [
        (4, "seconds", 1),
        (300, "seconds", 60),
        (3500, "seconds", 900),
        (9e5, "seconds", 4 * 86400),
        (3 * 2**30, "bytes", 2**30),
        (2.0, "number", None),
    ],
)
def test_times_and_sizes_have_ticks_that_people_expect(
    highest: float, kind: Amount, step: float | None
) -> None:
    assert tick_step(highest, kind) == step


def test_ticks_have_units() -> None:
    by_time = chart(x="seconds", curves=(Curve("a", (0, 2000, 4000), (5.0, 3.0, 2.5)),))
    assert {">15m<", ">1h<"} <= set(re.findall(r">[\dhms ]+<", draw(by_time, "c")))
    memory = chart(y="bytes", curves=(Curve("a", (0, 1e6), (2.0**30, 2.0**31)),))
    assert ">1 GiB<" in draw(memory, "c")


def test_a_name_is_neither_hidden_nor_read_as_mathematics() -> None:
    two = (Curve("_a$x$ <b>", (0, 1), (1, 2)), Curve("b", (0, 1), (1, 2)))
    svg = draw(chart(curves=two), "c")
    assert "a$x$ &lt;b&gt;" in svg
    assert 'aria-label="Loss by tokens. _a$x$ &lt;b&gt;: from 1 to 2' in svg


def test_marks_and_levels_are_named_once() -> None:
    marks = (Mark("resumed", 5e5), Mark("resumed", 9e5), Mark("rewound", 1e6))
    svg = draw(chart(marks=marks, level=("predicted", 4.0)), "c")
    for word in ("resumed", "rewound", "predicted"):
        assert len(re.findall(rf">{word}<", svg)) == 1, word


def test_one_point_is_no_chart() -> None:
    assert chart(curves=(Curve("a", (1,), (1,)),)).is_empty
    assert not chart().is_empty
