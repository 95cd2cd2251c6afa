"""The texts of a dataset are here once for each revision, or it is said what to do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmtrain.data.corpus import Corpus
from llmtrain.data.sources import huggingface
from llmtrain.data.sources.download import FetchOptions
from llmtrain.data.sources.huggingface import DatasetSpec, parse_dataset_spec
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError, InterruptedRunError

datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'llmtrain[hf]'")

TEXTS = [f"text {number} é😀\n" for number in range(700)]


Resolve = Callable[..., Corpus]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A dataset of this machine, of two splits and two columns."""
    path = tmp_path / "set"
    path.mkdir()
    rows = [{"text": text, "title": f"title {i}", "n": i} for i, text in enumerate(TEXTS)]
    write(path / "train.jsonl", rows)
    write(path / "test.jsonl", rows[:3])
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def resolve(cache: Path) -> Resolve:
    def call(spec: str, text_field: str = "text", **work: Any) -> Corpus:
        fetching = FetchOptions(cache, text_field, **work)
        return resolve_sources([spec], text_field=text_field, fetching=fetching)

    return call


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


def entries(cache: Path) -> list[Path]:
    return list((cache / "remote" / "datasets").glob("[!.]*"))


def assert_data_error(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    said = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert "\n" not in caught.value.message
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("hf://name", ("name", None, "train", None)),
        ("hf://owner/name", ("owner/name", None, "train", None)),
        ("hf://owner/name/cfg:test#body", ("owner/name", "cfg", "test", "body")),
        ("hf://owner/na.me-1:val_2", ("owner/na.me-1", None, "val_2", None)),
        ("hf://owner/name#a b/c:d", ("owner/name", None, "train", "a b/c:d")),
        ("hf:///a/b c/d", ("/a/b c/d", None, "train", None)),
        ("hf://./a:test#x", ("./a", None, "test", "x")),
        ("hf://C:/a", ("C:/a", None, "train", None)),
    ],
)
def test_a_spec_has_its_parts(spec: str, parts: tuple[Any, ...]) -> None:
    assert parse_dataset_spec(spec) == DatasetSpec(*parts)


@pytest.mark.parametrize(
    "spec", ["hf://", "hf://a/b/c/d", "hf://owner/name:", "hf://a b", "hf://a#", "hf://a:b:c"]
)
def test_what_names_no_dataset_is_refused(resolve: Resolve, spec: str) -> None:
    assert_data_error(partial(resolve, spec), spec, "hf://OWNER/NAME")


def test_every_row_is_a_document(directory: Path, resolve: Resolve, cache: Path) -> None:
    corpus = resolve(f"hf://{directory}")
    assert texts(corpus) == TEXTS
    assert next(corpus.documents()).origin == f"hf://{directory}:1"
    (record,) = corpus.describe()
    assert record["rows"] == len(TEXTS)
    assert (record["split"], record["column"]) == ("train", "text")
    assert len(record["revision"]) == 64
    assert texts(resolve(f"hf://{directory}:test#title")) == [f"title {i}" for i in range(3)]
    assert texts(resolve(f"hf://{directory}:test", "title")) == [f"title {i}" for i in range(3)]
    assert len(entries(cache)) == 3


def test_a_revision_is_read_once(
    directory: Path, resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        assert texts(resolve(f"hf://{directory}")) == TEXTS
        patch.setattr(datasets, "load_dataset", None)
        assert texts(resolve(f"hf://{directory}")) == TEXTS
    write(directory / "train.jsonl", [{"text": "new"}])
    assert texts(resolve(f"hf://{directory}")) == ["new"]


def test_the_commit_is_asked_for_and_pinned(
    directory: Path, resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that come later are those of the revision that the record names."""
    asked: list[tuple[Any, ...]] = []
    load = datasets.load_dataset

    def local(path: str, config: str | None, **options: Any) -> Any:
        asked.append((path, config, options.pop("revision")))
        return load(str(directory), **options)

    commit = SimpleNamespace(sha="0123abcd")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name: commit)
    monkeypatch.setattr(datasets, "load_dataset", local)
    corpus = resolve("hf://owner/name/cfg:test")
    assert texts(corpus) == TEXTS[:3]
    assert asked == [("owner/name", "cfg", "0123abcd")]
    (record,) = corpus.describe()
    assert (record["dataset"], record["revision"]) == ("owner/name", "0123abcd")
    commit.sha = "4567"
    resolve("hf://owner/name/cfg:test")
    assert [revision for _, _, revision in asked] == ["0123abcd", "4567"]


def test_a_damaged_entry_is_named(directory: Path, resolve: Resolve, cache: Path) -> None:
    resolve(f"hf://{directory}")
    (entry,) = entries(cache)
    (entry / "facts.json").write_text("{")
    assert_data_error(partial(resolve, f"hf://{directory}"), str(entry), "damaged", "remove it")


def test_rows_without_text_are_counted(directory: Path, resolve: Resolve) -> None:
    write(directory / "train.jsonl", [{"text": "a"}, {"text": None}, {"text": ""}, {"text": "b"}])
    corpus = resolve(f"hf://{directory}")
    assert texts(corpus) == ["a", "b"]
    (record,) = corpus.describe()
    assert (record["rows"], record["rows_without_text"]) == (4, 2)


def test_an_interrupted_reading_leaves_nothing(
    directory: Path, resolve: Resolve, cache: Path
) -> None:
    seen: list[int] = []

    def stop() -> None:
        if seen:
            raise InterruptedRunError("stop")

    with pytest.raises(InterruptedRunError):
        resolve(f"hf://{directory}", check_stop=stop, on_progress=lambda done, _: seen.append(done))
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert texts(resolve(f"hf://{directory}")) == TEXTS


def test_datasets_that_cannot_be_read(
    directory: Path, resolve: Resolve, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"hf://{directory}"
    assert_data_error(partial(resolve, f"{spec}#body"), "'body'", "'title'", f"{spec}#text")
    assert_data_error(partial(resolve, f"{spec}#n"), "'n' of row 1 is not text: 0", "#COLUMN")
    assert_data_error(partial(resolve, f"{spec}:none"), ":none", "test")
    assert_data_error(partial(resolve, f"hf://{directory}/none"), "none does not exist")
    (directory / "test.jsonl").write_text("{ no JSON\n")
    assert_data_error(partial(resolve, f"{spec}:test"), f"{spec}:test")
    (directory / "empty").mkdir()
    assert_data_error(partial(resolve, f"{spec}/empty"), f"{spec}/empty")
    assert entries(cache) == []


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ConnectionError("no route"), ("cannot be reached: no route", "check the network")),
        ("GatedRepoError", ("may not be read", "HF_TOKEN")),
        ("RepositoryNotFoundError", ("does not exist", "HF_TOKEN")),
    ],
)
def test_a_hub_that_does_not_answer(
    resolve: Resolve,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Any,
    parts: tuple[str, ...],
) -> None:
    if isinstance(error, str):
        error = type(error, (OSError,), {})("401")

    def refuse(self: object, name: str) -> None:
        raise error

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    assert_data_error(partial(resolve, "hf://owner/name"), "hf://owner/name", *parts)
    assert entries(cache) == []
    if isinstance(error, ConnectionError):
        monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
        assert_data_error(partial(resolve, "hf://owner/name"), "offline", "unset HF_HUB_OFFLINE")


def test_a_missing_library_names_the_extra(
    resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert_data_error(partial(resolve, "hf://owner/name"), "pip install 'llmtrain[hf]'")


def test_a_hint_with_a_column_can_be_typed() -> None:
    with pytest.raises(DataError) as caught:
        huggingface._require_column("hf://a/b:train#text", ["full text"], "text")
    assert str(caught.value.hint).endswith("--data 'hf://a/b:train#full text'")
