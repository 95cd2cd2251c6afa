"""The report asks nobody for anything, and nothing that a run holds can do anything in it."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from llmtrain.engine.run_report import report_of
from llmtrain.report.page import visible
from tests.report.runs import HOSTILE, write_run


class Page(HTMLParser):
    """Tags, attributes and headings of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("runs")
    return report_of([write_run(directory / "a"), write_run(directory / "b<i>")])


def test_nothing_is_requested(text: str) -> None:
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    pointing = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")
    targets = [value for name, value in page.attributes if name in pointing]
    assert [target for target in targets if not target.startswith("#")] == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_a_sample_stays_text(text: str) -> None:
    page = Page(text)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)" in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "\\u202e" in text
    assert "&lt;b&gt;cores" in text
    assert "b&lt;i&gt;" in text


def test_headings_are_in_order_and_charts_have_words(text: str) -> None:
    page = Page(text)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    images = page.attributes.count(("role", "img"))
    assert images == page.tags.count("svg") == 2 + 2 * 7  # no speed is logged
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert any(re.match(r"Loss by tokens\. training, smoothed: from \d", each) for each in labels)


def test_no_id_occurs_twice(text: str) -> None:
    ids = Counter(value for name, value in Page(text).attributes if name == "id")
    assert [name for name, count in ids.items() if count > 1] == []
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert used <= set(ids)


def test_colours_are_the_pages(text: str) -> None:
    assert "var(--series-1)" in text
    assert "prefers-color-scheme: dark" in text
    assert "#0102" not in text


def test_what_was_asked_decided_and_reached_is_there(text: str) -> None:
    for words in (
        *("2 GiB", "no difference seen", "2.0 Wh, 2.00 Wh a million tokens", "0.2.0", "a" * 64),
        *("1 skipped step, 1 resume", "predicted peak, ± 5%: 1.9 GiB to 2.1 GiB"),
        *("1 B to 1 MiB; 5% up to 20 B", "10 of 200, 5.0%", "of 4 MiB, 4.00 bytes each"),
        *("tokens by how often the training text has them", "llmtrain eval"),
    ):
        assert words in text, words
    assert "<th scope=" in text


def test_equal_runs_have_equal_charts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    texts = {re.sub(r"written [\d: -]+", "", report_of([run])) for _ in range(2)}
    assert len(texts) == 1


def test_a_long_run_has_a_small_report(tmp_path: Path) -> None:
    assert len(report_of([write_run(tmp_path / "a", steps=10_000)]).encode()) < 1_000_000


@pytest.mark.parametrize(
    "changes",
    [
        {"result": None, "forecast": None, "predicted": None, "data": None, "sessions": None},
        {"result": {"stopped": "done", "tokens_per_s": "fast", "peak_memory_bytes": [1]}},
        {"forecast": {"steps": {"value": 3.0, "low": "x", "high": {}}}},
        {"sessions": ["x", 3], "plan": {}, "machine": {"cpu": HOSTILE}},
    ],
)
def test_a_damaged_or_old_record_has_a_report(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {name: value for name, value in changes.items() if value is not None} | {
        name: {} if name != "sessions" else [] for name, value in changes.items() if value is None
    }
    changes = {n: v for n, v in changes.items() if v != {} or n == "plan"}
    assert "<h1>" in report_of([write_run(tmp_path / "a", **changes)])


def test_a_run_without_steps_has_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (tmp_path / "a" / "metrics.jsonl").unlink()
    assert "Fewer than two steps" in report_of([run])


@pytest.mark.parametrize("text", ["a\u202eb", "a\x00b", "a\ud800b", "a\u2066b"])
def test_characters_that_are_not_seen_are_shown(text: str) -> None:
    assert visible(text).isprintable()
    assert visible(text).startswith("a\\")


def test_lines_and_tabs_stay() -> None:
    assert visible("a\n\tb é 中") == "a\n\tb é 中"
