"""Both parts of the text have a window, or the short one is named before any costly work."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llmtrain.cli.app import run
from llmtrain.engine import train_run
from llmtrain.engine.api import train
from llmtrain.errors import DataError
from llmtrain.prepare import dataset as dataset_module
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import Dataset, open_dataset, prepare_dataset
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note
from llmtrain.train.events import Event

CONTEXT = 256


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def prose(size_bytes: int) -> str:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(400)]
    lines = (" ".join(draw.choices(words, k=9)) for _ in range(size_bytes // 40))
    return "\n".join(lines)[: size_bytes - 1] + "\n"


def prepared(section: DataSection, context: int = CONTEXT) -> tuple[Dataset, list[str]]:
    events: list[Event] = []
    work = PrepareContext(1, events.append, lambda: None)
    dataset = prepare_dataset(section, 1200, work, context=context)
    dataset.shards.close()
    return dataset, [each.text for each in events if isinstance(each, Note)]


def section_of(path: Path, text: str, **values: object) -> DataSection:
    path.write_text(text)
    return DataSection.model_validate({"sources": (str(path),), **values})


@pytest.mark.parametrize("size_bytes", [10_000, 30_000, 60_000])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_short_text_gets_validation_text_that_works(
    tmp_path: Path, size_bytes: int, name: str
) -> None:
    text = prose(size_bytes)
    if name == "a.jsonl":
        text = "".join(json.dumps({"text": line}) + "\n" for line in text.splitlines())
    dataset, notes = prepared(section_of(tmp_path / name, text))
    index = dataset.shards.index
    assert index.validation.tokens > CONTEXT
    assert index.train.text_bytes > 0.7 * (index.train.text_bytes + index.validation.text_bytes)
    assert any(note.startswith("the text is short") for note in notes)
    assert index.validation_fraction <= 0.25


def test_a_long_text_is_split_as_the_profile_says(tmp_path: Path) -> None:
    dataset, notes = prepared(section_of(tmp_path / "a.txt", prose(400_000)), 64)
    assert dataset.shards.index.validation_fraction == 0.02
    assert not any(note.startswith("the text is short") for note in notes)


def test_a_run_with_a_short_text_finds_it_again_without_the_cache(
    tmp_path: Path, cache: Path
) -> None:
    section = section_of(tmp_path / "a.txt", prose(20_000))
    dataset, _ = prepared(section)
    key, work = dataset.shards.index.key, PrepareContext(1, lambda _: None, lambda: None)
    saved = dataset.tokenizer_directory.rename(tmp_path / "tokenizer")
    (cache / "shards").rename(tmp_path / "gone")
    again = open_dataset(section, 1200, key, saved, work, CONTEXT)
    again.shards.close()
    assert again.shards.index.key == key


@pytest.mark.parametrize(
    ("size_bytes", "values", "side", "advice"),
    [
        (900, {}, "validation text", "--data"),
        (200, {}, "text to train on", "--data"),
        (20_000, {"validation_fraction": 0.995}, "text to train on", "validation_fraction"),
    ],
)
def test_the_short_part_is_named_before_a_tokenizer_is_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size_bytes: int,
    values: dict[str, object],
    side: str,
    advice: str,
) -> None:
    monkeypatch.setattr(dataset_module, "ensure_tokenizer", None)
    with pytest.raises(DataError, match=rf"^the {side} has at most \d+ tokens") as caught:
        prepared(section_of(tmp_path / "a.txt", prose(size_bytes), **values))
    assert advice in str(caught.value.hint)


def test_short_validation_text_of_its_own_is_named(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("short")
    section = section_of(tmp_path / "a.txt", prose(20_000), validation=str(tmp_path / "v.txt"))
    with pytest.raises(DataError, match=r"^the validation text has at most 7 tokens") as caught:
        prepared(section)
    assert str(caught.value.hint) == "add text with data.validation"


def test_what_the_tokenizer_makes_too_short_is_named_too(tmp_path: Path) -> None:
    section = section_of(tmp_path / "a.txt", "word " * 12_000)
    with pytest.raises(DataError, match=r"^the validation text has \d+ tokens"):
        prepared(section, 4096)


def test_a_context_larger_than_the_text_is_refused_before_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(prose(5000))
    monkeypatch.setattr(train_run, "plan_resolved", None)
    with pytest.raises(DataError, match="window of context 16384"):
        train("cpu-tiny", data=[str(tmp_path / "a.txt")], settings={"model.context": 16384})


def test_a_weighted_source_shorter_than_a_window_is_named_before_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(prose(50_000))
    (tmp_path / "b.txt").write_text("a few words")
    monkeypatch.setattr(train_run, "plan_resolved", None)
    for short, long in (("b", "a"), ("a", "b")):  # in either place
        sources = [{"spec": str(tmp_path / f"{name}.txt"), "weight": 1} for name in (short, long)]
        with pytest.raises(
            DataError, match=r"b\.txt has at most 13 tokens, too few for one window"
        ) as caught:
            train("cpu-tiny", settings={"data.sources": sources})
        assert caught.value.hint == "leave that source out, or add text to it"


def test_a_short_text_is_refused_before_ranks_are_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(prose(900))
    monkeypatch.setattr(train_run, "plan_resolved", None)
    words = ["train", "-p", "cpu-tiny", "--data", str(tmp_path / "a.txt"), "--nproc", "2"]
    assert run([*words, "--out", str(tmp_path / "run")]) == 5
    assert "too few for one window" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
