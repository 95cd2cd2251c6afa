from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain.report.text_summary import data_rows, detected_languages, tokenizer_rows
from llmtrain.train.run_directory.directory import RunDirectory
from tests.train.harness import PROFILE, InProcessTrainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of two steps on text in two languages, of which ten are different."""
    place = tmp_path_factory.mktemp("text")
    english = "The quick brown fox jumps over the lazy dog and then goes home to sleep again.\n"
    german = "Der schnelle braune Fuchs springt über den faulen Hund und geht dann nach Hause.\n"
    for number in range(40):
        language = english if number % 2 else german
        (place / f"{number}.txt").write_text(language * (5 + number % 10), encoding="utf-8")
    profile = place / "tiny.yaml"
    profile.write_text(PROFILE.replace("corpus.txt", f"'{place.as_posix()}/*.txt'"))
    InProcessTrainer(profile)(place / "run", **{"train.steps": 2})
    return RunDirectory(place / "run")


def rows(run: RunDirectory, languages: dict[str, int] | None = None) -> dict[str, str]:
    found: dict[str, Any] = dict(data_rows(run.read_record(), languages))  # type: ignore[arg-type]
    return found


def test_lengths_and_copies_of_the_text_are_recorded_when_it_is_read(run: RunDirectory) -> None:
    found = rows(run)
    assert found["documents"].startswith("40, ")
    assert found["equal to an earlier document"].startswith("30 of 40")
    assert found["lengths"].count("up to") == 5


def test_languages_are_detected_all_over_the_text(run: RunDirectory) -> None:
    pytest.importorskip("py3langid")
    languages = detected_languages(run, run.read_record())
    assert languages is not None
    total = sum(languages.values())
    assert languages["de"] > total / 4
    assert languages["en"] > total / 4
    assert "de " in rows(run, languages)["languages"]


def test_without_the_shards_no_language_is_claimed(run: RunDirectory) -> None:
    record = run.read_record()
    for key in ("f" * 32, "../" + record["data"]["key"]):
        assert detected_languages(run, record | {"data": {"key": key}}) is None


def test_languages_that_are_few_are_summed_up() -> None:
    ((_, text),) = data_rows({}, {"und": 5, "zxx": 5} | {f"x{n}": 1 for n in range(10)})
    assert text.startswith("none, or code 50%, x0 5%")
    assert text.endswith("others 25% (of 20 places in the text)")


def test_the_tokenizer_is_described(run: RunDirectory, tmp_path: Path) -> None:
    found = dict(tokenizer_rows(run))  # type: ignore[arg-type]
    assert found["pieces"] == "400"
    assert " | " in found["cuts '3.14'"]
    assert list(tokenizer_rows(RunDirectory(tmp_path))) == []
