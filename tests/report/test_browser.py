"""The report in a browser: nothing goes wrong, nothing is requested, and axe has no complaint.

`AXE_CORE=…/axe-core/axe.min.js` (of the npm package axe-core) adds the accessibility rules.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("playwright.sync_api")

from llmtrain.engine.run_report import report_of
from tests.report.browser import BROWSER, SCHEMES, WIDTHS, inspect, launched
from tests.report.runs import write_run

AXE = Path(os.environ["AXE_CORE"]) if "AXE_CORE" in os.environ else None


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
            found = inspect(browser, page, width, scheme, AXE, None)
            assert (found.said, found.requested, found.overflow_pixels) == ([], [], 0)
            assert found.violations == []
