"""The public surface is the recorded one: nothing of it changes without a decision to do so.

After a change that is meant, and a line in CHANGELOG.md, record it:

    python -m pytest tests/cli/test_public_surface.py --write-snapshots -n 0
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from llmtrain.profile.schema import Profile
from tests.checkout import ROOT
from tests.cli import public_surface
from tests.cli.public_surface import command_lines, json_lines, profile_lines, surface

RECORDED = ROOT / "docs" / "reference" / "public_surface.txt"
STABILITY = ROOT / "docs" / "reference" / "stability.md"


def explain(recorded: str, now: str) -> str:
    """What changed, and what to do about it; an empty text where nothing did."""
    lines = list(
        difflib.unified_diff(recorded.splitlines(), now.splitlines(), "recorded", "now", n=0)
    )
    if not lines:
        return ""
    breaks = any(line.startswith("-") for line in lines[2:])
    rule = (
        "Something that programs rely on is gone or changed. See docs/reference/stability.md"
        if breaks
        else "Something was added"
    )
    steps = "add a line to CHANGELOG.md, then record it with the command in the first line of"
    return "\n".join([f"{rule}: {steps} {RECORDED.relative_to(ROOT)}", *lines])


def test_the_public_surface_is_the_recorded_one(trained: Path, pytestconfig: pytest.Config) -> None:
    now = surface(trained)
    if pytestconfig.getoption("--write-snapshots"):
        RECORDED.write_text(now, encoding="utf-8", newline="\n")
    complaint = explain(RECORDED.read_text(encoding="utf-8"), now)
    assert not complaint, complaint


def test_what_is_removed_is_told_from_what_is_added() -> None:
    assert explain("a\nb\n", "a\nb\n") == ""
    assert explain("a\n", "a\nb\n").startswith("Something was added")
    removed = explain("a\nb = 1\n", "a\nb = 2\n")
    assert "is gone or changed" in removed
    assert "CHANGELOG.md" in removed
    assert removed.splitlines()[-2:] == ["-b = 1", "+b = 2"]


def test_another_default_of_a_flag_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(command_lines())
    [option] = [each for each in public_surface.COMMANDS["generate"].params if each.name == "n"]
    monkeypatch.setattr(option, "default", 7)
    assert set(command_lines()) - set(before) == {"llmtrain generate --n VALUE = 7"}


def test_another_type_in_a_document_is_seen_and_another_sentence_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = list(json_lines())
    published = public_surface.published_schema

    def with_sentence(name: str) -> dict[str, object]:
        return {**published(name), "description": "other words"}

    monkeypatch.setattr(public_surface, "published_schema", with_sentence)
    assert list(json_lines()) == before

    def without_required(name: str) -> dict[str, object]:
        schema = published(name)
        return {**schema, "required": schema.get("required", [])[1:]} if name == "eval" else schema

    monkeypatch.setattr(public_surface, "published_schema", without_required)
    assert [line.split()[0] for line in set(json_lines()) - set(before)] == ["eval"]


def test_every_key_of_a_profile_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(profile_lines())
    monkeypatch.setattr(public_surface, "known_paths", lambda: ["name", "train.steps"])
    assert set(profile_lines()) < before
    assert "model.hidden_size = 384" in before
    assert len(before) == len({line.split()[0] for line in before}) > len(Profile.model_fields)


def test_the_page_names_every_section() -> None:
    titles = [
        line[2:]
        for line in RECORDED.read_text(encoding="utf-8").splitlines()[1:]
        if line.startswith("# ")
    ]
    page = STABILITY.read_text(encoding="utf-8")
    assert [title for title in titles if f"| {title} |" not in page] == []
