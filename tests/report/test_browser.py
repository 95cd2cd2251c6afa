"""The report in a browser: nothing goes wrong, nothing is requested, and axe has no complaint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("playwright.sync_api")

from llmtrain.engine.run_report import report_of
from tests.report.browser import BROWSER, SCHEMES, WIDTHS, axe_script, inspect, launched
from tests.report.runs import write_run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no browser is installed")
    with launched() as browser:
        yield browser


@pytest.mark.slow
def test_a_report_of_hostile_runs_is_harmless_and_readable(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b<i>", steps=1)]
    page.write_text(report_of(runs), encoding="utf-8")
    for width in WIDTHS:
        for scheme in SCHEMES:
            found = inspect(browser, page, width, scheme, axe_script(), None)
            assert (found.said, found.requested, found.overflow_pixels) == ([], [], 0)
            assert found.violations == []
