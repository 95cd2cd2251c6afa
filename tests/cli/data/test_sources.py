"""What is said as `--data` on a command line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.data.sources import stdin
from tests.cli.conftest import Command, ProcessCommand

LEARN = ("tokenizer", "train", "--vocab-size", 320, "--out", "t", "--data")


@pytest.fixture(autouse=True)
def _nothing_read_yet() -> Iterator[None]:
    """Each test has a standard input of its own."""
    stdin._spooled.cache_clear()
    yield
    stdin._spooled.cache_clear()


def test_a_run_from_standard_input_is_resumed_without_it(
    place: Path, process: ProcessCommand
) -> None:
    text = (place / "corpus.txt").read_bytes()
    train = ("train", "-p", "tiny.yaml", "--out", "run", "-q")
    begun = process(*train, "--data", "-", "--steps", 4, stdin=None, input=text)
    assert begun.returncode == 0, begun.stderr
    resumed = process(*train, "--steps", 6, "--resume", "auto", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["steps"] == 6


def test_lines_of_json_by_standard_input(llmtrain: Command) -> None:
    lines = "".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(99)).encode()
    learnt = llmtrain(*LEARN, "-.jsonl.gz", stdin=gzip.compress(lines))
    assert learnt.code == 0, learnt.err
    assert "99 documents" in learnt.out


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", b"id,body\n1,x\n", "a.csv:1 has no field 'text'; it has 'id', 'body'"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}', mtime=0)[:-4],
            "is not a complete gzip file",
        ),
        ("a.zip", b"PK", "a.zip is not a complete zip file"),
        ("a.xyz", b"a\0", "a.xyz is binary"),
    ],
)
def test_what_cannot_be_used_is_an_error_of_data(
    place: Path, llmtrain: Command, name: str, data: bytes, said: str
) -> None:
    (place / name).write_bytes(data)
    learnt = llmtrain(*LEARN, name, "--json")
    assert learnt.code == 5
    assert said in learnt.document["error"]["message"]
    assert learnt.document["error"]["hint"]
    trained = llmtrain("train", "-p", "tiny.yaml", "--data", name, "--out", "run", "--json")
    assert trained.code == 5
    assert said in trained.document["error"]["message"]


def test_include_and_exclude_are_keys_of_a_profile(place: Path, llmtrain: Command) -> None:
    (place / "d").mkdir()
    (place / "d" / "broken.jsonl").write_text("{")
    (place / "d" / "good.txt").write_bytes((place / "corpus.txt").read_bytes())
    train = ("train", "-p", "tiny.yaml", "--data", "d", "--steps", 2, "--out", "run", "-q")
    assert llmtrain(*train).code == 5
    assert llmtrain(*train, "--set", 'data.exclude=["*.jsonl"]').code == 0
    refused = llmtrain(*train, "--set", 'data.include=["!"]', "--out", "other")
    assert refused.code == 2
    assert "data.include" in refused.err
