from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmtrain.data.document import LONGEST_BYTES, Document
from llmtrain.data.quality.filters import filters_of, repetition
from llmtrain.data.quality.languages import LanguageDetector
from llmtrain.errors import UsageError
from llmtrain.profile.schema import FiltersSection

PROSE = (
    "The committee agreed that the proposal should be looked at again in spring.\n"
    "Nobody knew what it would cost, and few asked.\n"
    "A letter from the north, three days late, changed some minds but not the vote.\n"
)
GERMAN = "Der Ausschuss beschloss, den Vorschlag im Frühling noch einmal zu beraten."


def passing(section: FiltersSection, *documents: Document) -> list[bool]:
    """Which documents no filter of the section leaves out."""
    filters = filters_of(section)
    return [not any(f.drops(document) for f in filters) for document in documents]


def of(text: str, part_at: int | None = None) -> Document:
    return Document(text, "here", part_at)


def test_all_are_off_by_default() -> None:
    assert filters_of(FiltersSection()) == ()


def test_lengths_are_bytes_and_limits_are_allowed() -> None:
    section = FiltersSection(min_bytes=4, max_bytes=6)
    four, six = "éé", "ééé"
    assert passing(section, of("abc"), of(four), of(six), of("ééé1")) == [False, True, True, False]


def test_a_part_is_as_long_as_its_text_is_at_least() -> None:
    ending = of("the last lines", part_at=LONGEST_BYTES)
    assert passing(FiltersSection(min_bytes=1000), ending) == [True]
    assert passing(FiltersSection(max_bytes=2**25 - 1), ending) == [False]


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (PROSE, 0.0, 0.0),
        ("", 0.0, 0.0),
        (" \n \n", 0.0, 0.0),
        ("one two three", 0.0, 0.0),
        ("a line\n" * 4, 0.74, 1.0),
        ("one\ntwo\none\nthree\n", 0.25, 0.26),
        ("word " * 100, 0.9, 1.0),
        ("buy now " * 50 + PROSE, 0.6, 0.9),
        ("一様\n" * 10, 0.89, 1.0),
    ],
)
def test_repetition(text: str, least: float, most: float) -> None:
    assert least <= repetition(text) <= most


def test_blank_lines_are_no_repetition() -> None:
    assert repetition(PROSE.replace("\n", "\n\n\n")) == repetition(PROSE)


def test_repetition_above_the_limit_is_left_out() -> None:
    section = FiltersSection(max_repetition=0.3)
    assert passing(section, of(PROSE), of("spam spam\n" * 20)) == [True, False]


def test_languages() -> None:
    english, german, code = of(PROSE), of(GERMAN), of("x = f(1)\ny = g(2)\n")
    assert passing(FiltersSection(languages=("de",)), english, german) == [False, True]
    assert passing(FiltersSection(languages=("en", "de")), english, german, code) == [
        True,
        True,
        False,
    ]
    assert passing(FiltersSection(languages=("en", "und")), english, code) == [True, True]


@pytest.mark.parametrize("text", ["", " ", "12345", "\x00"])
def test_what_has_no_words_has_no_language(text: str) -> None:
    assert LanguageDetector().language(text) == "und"


def test_an_unknown_language_is_refused_with_what_was_meant() -> None:
    with pytest.raises(UsageError, match="frr is not a language that can be detected") as caught:
        filters_of(FiltersSection(languages=("en", "frr")))
    assert caught.value.hint == "did you mean fr?"


def test_languages_without_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.data.quality.languages.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="py3langid") as caught:
        filters_of(FiltersSection(languages=("en",)))
    assert caught.value.hint == "pip install 'llmtrain[language]'"


@pytest.mark.parametrize(
    "values",
    [
        {"min_bytes": 0},
        {"max_bytes": 2**25},
        {"languages": ()},
        {"languages": ("English",)},
        {"max_repetition": 1.0},
        {"max_words": 3},
        {"min_bytes": 10, "max_bytes": 9},
    ],
)
def test_impossible_filters_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FiltersSection.model_validate(values)
