"""The documentation site: its navigation, its pages, and that a dead link stops it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import build_site
import pytest
import site_links
import site_pages
from jsonschema import Draft202012Validator

from llmtrain.documents.published import PUBLISHED
from tests.checkout import ROOT
from tests.cli.public_surface import FUNCTIONS
from tests.cli.test_help import COMMANDS

INDEX = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of every page of the site."""
    place = tmp_path_factory.mktemp("site") / "pages"
    build_site.write_pages(place)
    return place


def listed(entries: object) -> set[str]:
    """The pages that a navigation leads to."""
    if isinstance(entries, dict):
        return set().union(*map(listed, entries.values()))
    if isinstance(entries, list):
        return set().union(*map(listed, entries))
    return {str(entries)}


def test_the_navigation_leads_to_every_page(pages: Path) -> None:
    written = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    assert listed(list(build_site.navigation_of(INDEX))) == written


def test_the_help_of_every_command_is_a_section(pages: Path) -> None:
    text = (pages / "reference" / "cli.md").read_text(encoding="utf-8")
    leaves = [path for path, command in COMMANDS.items() if not hasattr(command, "commands")]
    assert [path for path in leaves if f"## llmtrain {path}\n\n```text\nUsage: " not in text] == []
    assert "\x1b" not in text


def test_every_schema_is_a_file(pages: Path) -> None:
    for name in (*PUBLISHED, "profile"):
        path = pages / "reference" / "schemas" / f"{name}.json"
        Draft202012Validator.check_schema(json.loads(path.read_text(encoding="utf-8")))


def test_every_public_function_has_its_signature_and_docstring(pages: Path) -> None:
    text = (pages / "reference" / "python.md").read_text(encoding="utf-8")
    assert [name for name in FUNCTIONS if f"\nengine.{name}(\n    " not in text] == []
    assert "| `tokens_per_s` | `float \\| None` |" in text
    assert "| `energy_joules` | `float \\| None` | of this session;" in text


def test_links_lead_to_the_site_or_become_text(pages: Path) -> None:
    text = (pages / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "](docs/" not in text
    assert "](tests/" not in text
    assert "](CHANGELOG.md)" in text
    index = (pages / "index.md").read_text(encoding="utf-8")
    assert "[Contributing](CONTRIBUTING.md)" in index
    assert "[Examples](examples.md)" in index


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ('<a href="other.html#there">x</a><img src="a.png">', ""),
        ('<a href="#here" id="here">x</a><a href="https://example.org/">x</a>', ""),
        ('<a href="no.html">x</a>', "links to no.html, which is not there"),
        ('<a href="other.html#no">x</a>', "the page has no such heading"),
        ('<img src="no.png">', "loads no.png, which is not there"),
        ('<a href="../../secret.html">x</a>', "which is not there"),
        ('<script src="https://example.org/x.js"></script>', "from another server"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "from another server"),
    ],
)
def test_a_link_that_leads_nowhere_is_named(page: str, complaint: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "secret.html").write_text("")
    (site / "page.html").write_text(page)
    (site / "other.html").write_text('<h2 id="there">x</h2>')
    (site / "a.png").write_bytes(b"")
    found = site_links.complaints(site)
    assert len(found) == bool(complaint)
    assert all(complaint in each for each in found)


def test_empty_headings_and_nameless_boxes_are_mended() -> None:
    html = '<th align="left"></th><th>a</th><input type="checkbox" disabled checked/>'
    mended = build_site.readable_aloud(html + '<input type="checkbox" disabled/>')
    assert mended.startswith('<td align="left"></td><th>a</th>')
    assert mended.count('aria-label="done"') == mended.count('aria-label="open"') == 1


def test_a_signature_has_a_line_for_each_parameter() -> None:
    text = "(profile: str | None = None, *, data: Mapping[str, Any] = ()) -> A"
    lines = ["    profile: str | None = None,", "    *,", "    data: Mapping[str, Any] = (),"]
    assert site_pages.wrapped("f", text) == "\n".join(["engine.f(", *lines, ") -> A"])


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    built = tmp_path / "site"
    program = ROOT / ".ci" / "docs" / "build_site.py"
    subprocess.run([sys.executable, program, built], check=True, timeout=200)
    assert "Getting started" in (built / "index.html").read_text(encoding="utf-8")
    assert (built / "search.json").stat().st_size > 100_000
