"""What strangers look for first is there, and says what the program is."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import llmtrain
from llmtrain.cli.app import app
from tests.checkout import ROOT

GITHUB = ROOT / ".github"
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: Any) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_citation_is_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == llmtrain.__version__
    assert citation["license"] in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert {"cff-version", "title", "authors", "message"} <= set(citation)


@pytest.mark.parametrize("name", ["SECURITY.md", "CODE_OF_CONDUCT.md"])
def test_it_is_said_where_to_turn(name: str) -> None:
    text = (GITHUB / name).read_text(encoding="utf-8")
    assert "maintainers" in text.lower() or "report" in text.lower()
    assert len(text) > 300


def test_a_bug_form_asks_for_commands_that_exist() -> None:
    form = read(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")
    asked = " ".join(str(field["attributes"]) for field in form["body"] if "attributes" in field)
    names = {command.name for command in app.registered_commands}
    names |= {group.name for group in app.registered_groups}
    for words in ("llmtrain device info --json", "llmtrain report-bug"):
        assert words in asked
        assert words.split()[1] in names


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_are_forms(path: Any) -> None:
    form = read(path)
    if path.stem != "config":
        assert {"name", "description", "body"} <= set(form)
        assert all(
            field["type"] in ("textarea", "input", "markdown", "dropdown", "checkboxes")
            for field in form["body"]
        )
