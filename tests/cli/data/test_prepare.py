"""`data prepare` makes what `train` reads, and `data cache` tells and removes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain.data.shards.cache_entry import entry_lock
from llmtrain.data.shards.prepared import open_prepared
from llmtrain.files import cache_directory
from tests.cli.conftest import Command


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty, and this test's alone."""
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def prepared(llmtrain: Command) -> dict[str, Any]:
    document: dict[str, Any] = llmtrain("data", "prepare", "-p", "tiny.yaml", "--json").document
    return document


def keys(llmtrain: Command) -> Iterator[tuple[str, str]]:
    for entry in llmtrain("data", "cache", "list", "--json").document["entries"]:
        yield entry["kind"], entry["key"]


def test_what_is_prepared_is_counted(prepared: dict[str, Any], place: Path) -> None:
    assert prepared["text_bytes"] == (place / "corpus.txt").stat().st_size
    assert prepared["tokens"] == prepared["train_tokens"] + prepared["validation_tokens"]
    assert prepared["bytes_per_token"] == prepared["text_bytes"] / prepared["tokens"]
    with open_prepared(Path(prepared["directory"])) as data:
        data.verify()
        assert data.index.key == prepared["key"]


def test_training_finds_what_was_prepared(llmtrain: Command, prepared: dict[str, Any]) -> None:
    outcome = llmtrain("train", "-p", "tiny.yaml", "--steps", 1, "--out", "run")
    assert outcome.code == 0
    assert "training a tokenizer" not in outcome.err
    assert "tokenizing" not in outcome.err
    assert {key for kind, key in keys(llmtrain) if kind == "shards"} == {prepared["key"]}


def test_options_are_those_of_train(
    llmtrain: Command, prepared: dict[str, Any], place: Path
) -> None:
    (place / "other.jsonl").write_text('{"body": "a b c\\n"}\n' * 30)
    said = ("--data", "other.jsonl", "--text-field", "body", "--tokenizer", prepared["tokenizer"])
    others = ("--workers", 2, "--set", "data.validation_fraction=0.5")
    document = llmtrain("data", "prepare", "-p", "tiny.yaml", *said, *others, "--json").document
    assert document["text_bytes"] == 30 * 6
    assert document["tokenizer"] == prepared["tokenizer"]
    assert document["validation_tokens"] >= 10


def test_results_for_people(llmtrain: Command) -> None:
    outcome = llmtrain("data", "prepare", "-p", "tiny.yaml")
    assert outcome.code == 0
    names = [line.split("  ")[0] for line in outcome.out.splitlines()]
    assert names == ["shards", "tokenizer", "text", "tokens", "bytes per token", "time"]
    assert "training a tokenizer" in outcome.err


def test_no_text_is_a_data_error(llmtrain: Command) -> None:
    outcome = llmtrain("data", "prepare", "-p", "tiny.yaml", "--data", "missing.txt", "--json")
    assert (outcome.code, outcome.document["error"]["code"]) == (5, 5)


def test_the_cache_is_listed(llmtrain: Command, prepared: dict[str, Any], cache: Path) -> None:
    (cache / "shards" / ".building-0123456789").mkdir()
    document = llmtrain("data", "cache", "list", "--json").document
    entries = {entry["kind"]: entry for entry in document["entries"]}
    assert set(entries) == {"shards", "tokenizer", "unfinished"}
    assert entries["shards"]["key"] == prepared["key"]
    assert entries["shards"]["tokens"] == prepared["tokens"]
    assert entries["shards"]["made_from"] == entries["tokenizer"]["made_from"] == ["corpus.txt"]
    assert entries["tokenizer"]["directory"] == prepared["tokenizer"]
    assert entries["unfinished"]["key"] == "0123456789"
    assert document["size_bytes"] == sum(entry["size_bytes"] for entry in entries.values())
    heading, *lines = llmtrain("data", "cache", "list").out.splitlines()
    assert heading.split() == ["key", "kind", "size", "age", "tokens", "text"]
    assert [line.split()[0] for line in lines] == [entry["key"] for entry in document["entries"]]


def test_an_empty_cache_is_listed(llmtrain: Command) -> None:
    document = llmtrain("data", "cache", "list", "--json").document
    assert (document["entries"], document["size_bytes"]) == ([], 0)


def test_entries_of_earlier_versions_are_listed(
    llmtrain: Command, prepared: dict[str, Any], cache: Path
) -> None:
    for manifest in cache.rglob("manifest.json"):
        manifest.write_text("[")
    entries = llmtrain("data", "cache", "list", "--json").document["entries"]
    assert [(entry["made_from"], entry["tokens"]) for entry in entries] == [([], None)] * 2


def test_a_key_is_cleared(llmtrain: Command, prepared: dict[str, Any]) -> None:
    document = llmtrain("data", "cache", "clear", prepared["key"][:8], "--json").document
    assert [entry["key"] for entry in document["removed"]] == [prepared["key"]]
    assert document["freed_bytes"] == document["removed"][0]["size_bytes"] > 0
    assert not Path(prepared["directory"]).exists()
    assert [kind for kind, _ in keys(llmtrain)] == ["tokenizer"]


def test_only_what_is_old_is_cleared(llmtrain: Command, prepared: dict[str, Any]) -> None:
    directory = Path(prepared["directory"])
    for path in (directory, *directory.iterdir()):
        os.utime(path, (0, 0))
    document = llmtrain("data", "cache", "clear", "--older-than", "1d", "--json").document
    assert [entry["key"] for entry in document["removed"]] == [prepared["key"]]


def test_all_is_cleared_and_made_again(
    llmtrain: Command, prepared: dict[str, Any], cache: Path
) -> None:
    outcome = llmtrain("data", "cache", "clear", "--all")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 3  # with the heading
    assert list((cache / "shards").iterdir()) == []
    again = llmtrain("data", "prepare", "-p", "tiny.yaml", "--json").document
    assert again["key"] == prepared["key"]


@pytest.mark.skipif(sys.platform == "win32", reason="the system itself refuses there")
def test_what_a_process_reads_stays(llmtrain: Command, prepared: dict[str, Any]) -> None:
    with open_prepared(Path(prepared["directory"])):
        document = llmtrain("data", "cache", "clear", "--all", "--json").document
    assert [entry["key"] for entry in document["in_use"]] == [prepared["key"]]
    assert [entry["kind"] for entry in document["removed"]] == ["tokenizer"]
    assert Path(prepared["directory"]).is_dir()


def test_what_is_being_made_stays(llmtrain: Command, cache: Path) -> None:
    (cache / "shards" / ".building-0123456789").mkdir(parents=True)
    with entry_lock(cache_directory(), "0123456789"):
        outcome = llmtrain("data", "cache", "clear", "0123456789")
    assert "is in use by a process" in outcome.err
    assert [kind for kind, _ in keys(llmtrain)] == ["unfinished"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--older-than 30d"),
        (("abcdef12",), "'abcdef12'"),
        (("--older-than", "soon"), "not a duration"),
    ],
)
def test_what_cannot_be_cleared(llmtrain: Command, arguments: tuple[str, ...], said: str) -> None:
    outcome = llmtrain("data", "cache", "clear", *arguments)
    assert outcome.code == 2
    assert said in outcome.err


@pytest.mark.parametrize(("answer", "code", "left"), [(b"n\n", 130, 2), (b"y\n", 0, 0)])
def test_a_terminal_is_asked(
    llmtrain: Command,
    prepared: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    code: int,
    left: int,
) -> None:
    monkeypatch.setattr("llmtrain.cli.data.cache._is_terminal", lambda: True)
    outcome = llmtrain("data", "cache", "clear", "--all", stdin=answer)
    assert outcome.code == code
    assert "Remove 2 entries" in outcome.err
    assert len(list(keys(llmtrain))) == left


def test_a_program_is_told_that_nothing_was_removed(
    llmtrain: Command, prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.cli.data.cache._is_terminal", lambda: True)
    outcome = llmtrain("data", "cache", "clear", "--all", "--json", stdin=b"n\n")
    assert outcome.code == 130
    told = outcome.document
    assert (told["removed"], told["in_use"], told["freed_bytes"]) == ([], [], 0)
    assert len(list(keys(llmtrain))) == 2
