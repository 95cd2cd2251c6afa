"""`llmtrain help` shows every page of the documentation, in a terminal and in a pipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmtrain.cli.completion import topic_names
from llmtrain.cli.topics import pages, readable, title_of
from tests.checkout import ROOT
from tests.cli.conftest import Command


def test_every_guide_and_reference_page_is_a_topic(llmtrain: Command) -> None:
    files = {
        path for name in ("guides", "reference") for path in (ROOT / "docs" / name).glob("*.md")
    }
    assert set(pages().values()) == files
    listed = llmtrain("help", "--json").document["topics"]
    assert [topic["name"] for topic in listed] == topic_names("") == list(pages())
    lines = llmtrain("help").out.splitlines()
    assert [line.split()[0] for line in lines] == list(pages())
    assert lines[0].endswith(title_of(next(iter(pages().values()))))


@pytest.mark.parametrize("topic", list(pages()))
def test_a_page_is_shown_with_links_that_can_be_typed(topic: str, llmtrain: Command) -> None:
    outcome = llmtrain("help", topic)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"# {title_of(pages()[topic])}\n")
    prose = re.sub(r"^```.*?^```$", "", outcome.out, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"\]\([\w./]+\.md", prose)
    assert set(re.findall(r"`llmtrain help ([a-z-]+)`", prose)) <= set(pages())


def test_a_page_may_be_named_as_its_file_is(llmtrain: Command) -> None:
    by_file = llmtrain("help", "getting_started", "--json").document["text"]
    assert by_file == llmtrain("help", "getting-started", "--json").document["text"]


def test_an_unknown_page_is_refused(llmtrain: Command) -> None:
    outcome = llmtrain("help", "serveing")
    assert outcome.code == 2
    assert "there is no page 'serveing'" in outcome.err
    assert "hint: llmtrain help serving" in outcome.err


def test_links_become_what_can_be_typed_and_code_stays(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for name in ("guides/data.md", "guides/page.md", "measurements/data.md"):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text("")
    topics = {"data": docs / "guides" / "data.md"}
    page = docs / "guides" / "page.md"
    code = "```\n[i](data.md)\n```\n"
    links = "[a `b`](data.md#x) [c](https://d.org) ![e](../f.svg) [g](../measurements/data.md)"
    page.write_text(f"{links} [h](#x)\n{code}", encoding="utf-8")
    assert readable(page, topics) == (
        "a `b` (`llmtrain help data`) c: https://d.org e g h\n" + code
    )
