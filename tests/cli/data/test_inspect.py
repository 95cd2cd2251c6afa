from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from llmtrain.cli.data.report import shown
from llmtrain.tokenizer import Tokenizer
from tests.benchmarks.near_duplicates import invented
from tests.cli.conftest import Command, ProcessCommand

EVIL = "red \x1b[31m and \x07 \u202ebackwards\u202c \x9b2J \u2028 nul \x00 end " * 3
TRAIN = ("train", "-p", "tiny.yaml", "--out", "run", "--steps", 2, "--set", "model.vocab_size=800")


def write(path: Path, *texts: str) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def planted(place: Path) -> Path:
    """300 documents, then 5 equal ones and 60 near copies."""
    originals = [text[: 300 + place] for place, text in enumerate(invented(300, seed=1))]
    near = [text.replace(" ", "\n") for text in originals[40:100]]
    write(place / "planted.jsonl", *originals, *originals[200:205], *near)
    return place / "planted.jsonl"


def test_everything_is_counted(llmtrain: Command, planted: Path, place: Path) -> None:
    texts = [json.loads(line)["text"] for line in planted.read_text().splitlines()]
    made = llmtrain("tokenizer", "train", "--data", planted, "--vocab-size", 400, "--out", "t")
    assert made.code == 0

    document = llmtrain(
        *("data", "inspect", "--data", planted, "--tokenizer", "t", "--json")
    ).document

    text_bytes = sum(len(text.encode()) for text in texts)
    assert document["documents"] == len(texts) == 365
    assert document["bytes"] == text_bytes
    assert document["characters"] == sum(map(len, texts))
    assert document["equal"]["documents"] == 5
    assert document["equal"]["text_bytes"] == sum(len(text.encode()) for text in texts[300:305])
    assert document["near"]["documents"] == 60
    assert document["leakage"]["copies"] > 0
    encode = Tokenizer.load(place / "t").encode
    assert document["tokens"] == 365 + sum(len(encode(text)) for text in texts)
    assert document["bytes_per_token"] == text_bytes / document["tokens"]
    assert sum(each["documents"] for each in document["lengths"]) == 365
    assert sum(each["text_bytes"] for each in document["lengths"]) == text_bytes
    assert document["longest"]["text_bytes"] == max(len(text.encode()) for text in texts)
    assert sum(document["languages"].values()) == 365
    assert len(document["samples"]) == 3
    assert document["epochs"] is None
    assert document["left_out"] == []


def test_lengths_fall_into_their_bins(llmtrain: Command, place: Path) -> None:
    write(place / "some.jsonl", *("x" * size for size in (1, 2, 3, 4, 16, 31)), "é" * 8)
    lengths = llmtrain("data", "inspect", "--data", "some.jsonl", "--json").document["lengths"]
    assert [(each["from_bytes"], each["documents"]) for each in lengths] == [
        *((1, 1), (2, 2), (4, 1), (8, 0), (16, 3)),
    ]


def test_a_profile_says_how_often_the_text_is_read(
    llmtrain: Command, planted: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "cache"))
    inspect = ("data", "inspect", "-p", "tiny.yaml", "--data", planted, "--json")
    document = llmtrain(*inspect).document
    epochs = document["epochs"]
    assert (epochs["profile"], epochs["trained_tokens"]) == ("tiny", 20 * 256)
    assert epochs["epochs"] == pytest.approx(20 * 256 / (0.98 * document["tokens"]))

    by_time = llmtrain(*inspect, "--set", "train.time=5s").document["epochs"]
    assert (by_time["trained_tokens"], by_time["epochs"]) == (None, None)
    assert llmtrain(*inspect, "--set", "train.epochs=3").document["epochs"]["epochs"] == 3


def test_the_first_documents_only(llmtrain: Command, planted: Path) -> None:
    inspect = ("data", "inspect", "--data", planted, "--sample", 40)
    document = llmtrain(*inspect, "--json").document
    assert (document["documents"], document["only_first_documents"]) == (40, 40)
    assert "only the first 40 " in llmtrain(*inspect).out


def test_rules_of_the_profile_apply(llmtrain: Command, planted: Path) -> None:
    rules = ("--set", "data.duplicates=drop_near", "--set", "data.filters.min_bytes=320")
    outcome = llmtrain("data", "inspect", "--data", planted, *rules, "--json")
    document = outcome.document
    assert (document["equal"]["documents"], document["near"]["documents"]) == (0, 0)
    assert document["leakage"]["copies"] == 0
    reasons = {each["reason"]: each["documents"] for each in document["left_out"]}
    assert 365 - document["documents"] == sum(reasons.values())
    assert list(reasons) == [
        *("shorter than 320 B", "equal to an earlier document"),
        "near copy of an earlier document",
    ]
    assert "left out" in outcome.err


@pytest.mark.parametrize("columns", ["80", "40", "200"])
def test_what_is_shown_fits(
    columns: str, llmtrain: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    write(place / "wide.jsonl", "数据清理很重要" * 100, EVIL, "a" * 5000, *invented(20, seed=1))
    outcome = llmtrain("data", "inspect", "--data", "wide.jsonl")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert "█" in outcome.out
    assert not set(outcome.out) & set("\x00\x07\x1b\x9b\u202e\u2028")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_what_an_encoding_lacks_is_spelt(
    encoding: str, process: ProcessCommand, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    write(place / "some.jsonl", "数据清理很重要" * 10, "été", "abc" * 300)
    done = process("data", "inspect", "--data", "some.jsonl")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode(encoding).splitlines()
    assert any(line.endswith("####") for line in lines)
    assert any("\\u6570" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_a_terminal_never_sees_what_it_obeys() -> None:
    assert shown("a\tb\x1b[0m\u200d\u2029\U000e0001é数") == (
        "a  b\\u001b[0m\\u200d\\u2029\\U000e0001é数"
    )


def test_without_the_extras_the_rest_is_told(
    llmtrain: Command, planted: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "cache"))
    for module in ("minhash", "languages"):
        monkeypatch.setattr(f"llmtrain.data.quality.{module}.find_spec", lambda name: None)
    document = llmtrain("data", "inspect", "--data", planted, "--json").document
    assert (document["near"], document["leakage"], document["languages"]) == (None, None, None)
    assert document["equal"]["documents"] == 5
    out = llmtrain("data", "inspect", "--data", planted).out
    assert "pip install 'llmtrain[dedup]'" in out
    assert "pip install 'llmtrain[language]'" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--data", "nowhere"), 5, "nowhere does not exist"),
        (("--data", "corpus.txt", "--sample", 0), 2, "--sample"),
        (("--data", "corpus.txt", "--tokenizer", "nowhere"), 5, "nowhere"),
        (
            ("--data", "corpus.txt", "--set", "data.filters.languages=[xx]"),
            2,
            "xx is not a language",
        ),
        (("--data", "corpus.txt", "--set", "data.filters.max_bytes=1"), 5, "every document"),
        (("--data", "corpus.txt", "--set", "data.duplicates=drop"), 2, "drop_exact"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: tuple[object, ...], code: int, said: str, llmtrain: Command
) -> None:
    outcome = llmtrain("data", "inspect", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err


def test_training_leaves_out_tells_and_records(
    llmtrain: Command, planted: Path, place: Path
) -> None:
    write(place / "more.jsonl", EVIL, "short")
    rules = ("--set", "data.duplicates=drop_near", "--set", "data.filters.min_bytes=10")
    data = ("--data", planted, "--data", "more.jsonl")
    outcome = llmtrain(*TRAIN, *data, *rules)
    assert outcome.code == 0, outcome.err
    assert "left out 1 document (5 B) shorter than 10 B, for example" in outcome.err
    assert "left out 60 documents" in outcome.err
    assert "validation loss will come out too low" not in outcome.err

    record = yaml.safe_load((place / "run" / "run.yaml").read_text())["data"]
    assert [each["documents"] for each in record["left_out"]] == [1, 5, 60]
    assert record["left_out"][0]["examples"] == [
        {"origin": "more.jsonl:2", "beginning": "short"},
    ]
    assert record["leakage"]["copies"] == 0

    resumed = llmtrain("train", "--out", "run", "--resume", "auto", "--steps", 3)
    assert resumed.code == 0, resumed.err
    assert "left out" not in resumed.err  # the shards are in the cache
    again = yaml.safe_load((place / "run" / "run.yaml").read_text())["data"]
    assert again == record


def test_training_warns_of_copies_that_it_keeps(
    llmtrain: Command, planted: Path, place: Path
) -> None:
    write(place / "equal.jsonl", *[next(invented(1, seed=4))] * 40)
    outcome = llmtrain(*TRAIN, "--data", planted, "--data", "equal.jsonl")
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.err.split())
    assert "warning: " in said
    assert "have a near copy among those trained on: the validation loss will come" in said
    assert "44 of 405 documents are equal to an earlier one" in said
    assert "--set data.duplicates=drop_exact" in said


def test_a_byte_of_a_name_is_shown_as_everywhere() -> None:
    assert shown(os.fsdecode(b"n\xff.txt")) == r"n\xff.txt"
