"""Data elsewhere, from the command line: it is trained on and recorded, and secrets are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

fsspec = pytest.importorskip("fsspec", reason="needs the extra: pip install 'llmtrain[remote]'")


@pytest.fixture(autouse=True)
def _store(place: Path) -> Iterator[None]:
    store = fsspec.filesystem("memory")
    store.pipe_file("/box/corpus.txt", (place / "corpus.txt").read_bytes())
    yield
    store.store.clear()


def test_what_was_read_is_recorded(llmtrain: Any, place: Path) -> None:
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


def test_the_same_text_is_the_same_wherever_it_lies(llmtrain: Any, place: Path) -> None:
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
def test_no_message_has_a_secret(llmtrain: Any, place: Path, address: str, problem: str) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra: pip install 'llmtrain[remote]'")
    run = ("train", "-p", "tiny.yaml", "--data", address, "--out", "run", "--steps", 2)
    for more in ((), ("--debug",), ("--json",)):
        outcome = llmtrain(*run, *more)
        assert outcome.code == 5
        assert problem in outcome.out + outcome.err
        assert "s3cr3t" not in outcome.out + outcome.err
    assert not (place / "run" / "run.yaml").exists()
