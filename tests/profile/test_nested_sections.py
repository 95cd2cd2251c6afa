"""Sections within sections."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.errors import UsageError
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile


def test_an_empty_section_within_a_section_says_nothing(tmp_path: Path) -> None:
    for text in ("data:\n  filters:\n", "data:\n  filters: {}\n"):
        path = tmp_path / "empty.yaml"
        path.write_text(text)
        assert load_profile(str(path), environment={}).profile.data == Profile().data


@pytest.mark.parametrize("text", ["MODEL: {}", "mode: {}", "data: {filter: {}}"])
def test_an_unknown_section_is_refused_also_when_empty(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="unknown key"):
        load_profile(str(path), environment={})


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("data.filters.min_byts=3", "did you mean data.filters.min_bytes?"),
        ("filters.languages=[en]", "did you mean data.filters.languages?"),
    ],
)
def test_a_key_within_a_section_is_meant(said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_profile(None, environment={}, assignments=[said])
    assert caught.value.hint == hint


def test_a_section_can_be_said_by_the_environment() -> None:
    loaded = load_profile(None, environment={"LLMTRAIN_DATA__FILTERS__MIN_BYTES": "30"})
    assert loaded.profile.data.filters.min_bytes == 30
    assert loaded.origin_of("data.filters.min_bytes").startswith("environment ")
