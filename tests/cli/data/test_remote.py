"""Data elsewhere, from the command line: it is trained on and recorded, and secrets are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Command

fsspec = pytest.importorskip("fsspec", reason="needs the extra: pip install 'llmtrain[remote]'")


@pytest.fixture(autouse=True)
def _store(place: Path) -> Iterator[None]:
    store = fsspec.filesystem("memory")
    store.pipe_file("/box/corpus.txt", (place / "corpus.txt").read_bytes())
    yield
    store.store.clear()


def test_what_was_read_is_recorded(llmtrain: Command, place: Path) -> None:
    run = ("train", "-p", "tiny.yaml", "--data", "memory://box", "--out", "run")
    assert llmtrain(*run, "--steps", 2).code == 0
    record = yaml.safe_load((place / "run" / "run.yaml").read_text())
    (source,) = record["data"]["sources"]
    assert (source["spec"], source["kind"], source["files"]) == ("memory://box", "directory", 1)
    assert source["fetched_bytes"] == (place / "corpus.txt").stat().st_size
    assert len(source["versions_sha256"]) == 64

    fsspec.filesystem("memory").store.clear()
    longer = llmtrain(*run, "--resume", "auto", "--steps", 3)
    assert longer.code == 0  # its tokens are here

    again = llmtrain(*run[:-1], "other", "--steps", 2)
    assert (again.code, "memory://box does not exist" in again.err) == (5, True)


def test_the_same_text_is_the_same_wherever_it_lies(llmtrain: Command, place: Path) -> None:
    keys = set()
    for name, spec in (("here", "corpus.txt"), ("there", "memory://box/corpus.txt")):
        run = ("train", "-p", "tiny.yaml", "--data", spec, "--out", name, "--steps", 2)
        assert llmtrain(*run).code == 0
        keys.add(yaml.safe_load((place / name / "run.yaml").read_text())["data"]["key"])
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://me:s3cr3t@127.0.0.1:1/a.txt", "saved with the run"),
        ("http://127.0.0.1:1/a.txt?id=s3cr3t", "check the network"),
        ("http://127.0.0.1:1/a.txt?a=b&X-Amz-Signature=s3cr3t", "saved with the run"),
    ],
)
def test_no_message_has_a_secret(
    llmtrain: Command, place: Path, address: str, problem: str
) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra: pip install 'llmtrain[remote]'")
    run = ("train", "-p", "tiny.yaml", "--data", address, "--out", "run", "--steps", 2)
    for more in ((), ("--debug",), ("--json",)):
        outcome = llmtrain(*run, *more)
        assert outcome.code == 5
        assert problem in outcome.out + outcome.err
        assert "s3cr3t" not in outcome.out + outcome.err
    assert not (place / "run" / "run.yaml").exists()


def test_what_was_fetched_is_listed_and_removed(
    llmtrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The links of a source, and the files that no other source has links to."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(cache))
    store = fsspec.filesystem("memory")
    store.pipe_file("/box/more.txt", b"more text " * 500)
    for spec in ("memory://box", "memory://box/corpus.txt"):
        flags = ("--data", spec, "--vocab-size", 300, "--out", f"tok-{len(spec)}")
        assert llmtrain("tokenizer", "train", *flags).code == 0
    entries = llmtrain("data", "cache", "list", "--json").document["entries"]
    assert {tuple(each["made_from"]): each["kind"] for each in entries} == {
        ("corpus.txt", "more.txt"): "fetched",
        ("corpus.txt",): "fetched",
    }
    both = next(each for each in entries if len(each["made_from"]) == 2)
    assert llmtrain("data", "cache", "clear", both["key"], "--yes").code == 0
    (kept,) = (cache / "remote" / "files").iterdir()
    assert kept.stat().st_size == store.size("/box/corpus.txt")
    assert llmtrain("data", "cache", "clear", "--all", "--yes").code == 0
    assert list((cache / "remote" / "files").iterdir()) == []
    assert llmtrain("data", "cache", "list", "--json").document["entries"] == []
