from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.cli.conftest import Command, ProcessCommand
from tests.foreign import STYLES

AWKWARD = (
    b"line\r\nline\rline\n",
    b"nul \0 byte",
    "▁ is a block, ␀ a picture".encode(),
    b"  spaces around  \n\n",
    b"\ttab",
    "\ufeffmark, é, e\u0301, 𝄞, 🏳️‍🌈".encode(),
    b"<s></s><unk><0x0A>",
    b"",
    b"\n",
)


@pytest.fixture
def tokenizer(llmtrain: Command, place: Path) -> Path:
    made = llmtrain(
        *("tokenizer", "train", "--data", "corpus.txt", "--vocab-size", 320, "--out", "t", "-q")
    )
    assert made.code == 0, made.err
    return place / "t"


@pytest.mark.parametrize("text", AWKWARD)
def test_every_text_comes_back(text: bytes, tokenizer: Path, llmtrain: Command) -> None:
    encoded = llmtrain("tokenizer", "encode", "--tokenizer", tokenizer, stdin=text)
    assert encoded.code == 0
    assert encoded.out.endswith("\n")

    decoded = llmtrain("tokenizer", "decode", "--tokenizer", tokenizer, stdin=encoded.out.encode())

    assert decoded.code == 0
    assert decoded.out == text.decode()


def test_bytes_come_back_through_pipes_and_files(
    tokenizer: Path, process: ProcessCommand, place: Path
) -> None:
    text = b"".join(AWKWARD)
    (place / "text").write_bytes(text)
    encoded = process("tokenizer", "encode", "--tokenizer", tokenizer, "text")
    assert all(word.isdigit() for word in encoded.stdout.split())

    decoded = process(
        "tokenizer", "decode", "--tokenizer", tokenizer, stdin=None, input=encoded.stdout
    )

    assert decoded.stdout == text
    assert decoded.stderr == b""


@pytest.mark.parametrize(
    ("ids", "word"),
    [
        (b"12 x 13", "'x'"),
        (b"-1", "'-1'"),
        (b"1.5", "'1.5'"),
        (b"99999", "99999"),
        (b"\xff", "stdin"),
    ],
)
def test_junk_is_no_token(ids: bytes, word: str, tokenizer: Path, llmtrain: Command) -> None:
    outcome = llmtrain("tokenizer", "decode", "--tokenizer", tokenizer, stdin=ids)

    assert (outcome.code, outcome.out) == (5, "")
    assert word in outcome.err


def test_text_that_is_not_utf8_is_told_with_its_offset(tokenizer: Path, llmtrain: Command) -> None:
    outcome = llmtrain("tokenizer", "encode", "--tokenizer", tokenizer, stdin=b"good \xff")

    assert (outcome.code, outcome.out) == (5, "")
    assert "stdin" in outcome.err
    assert "byte 5" in outcome.err


def test_directory_without_a_tokenizer(llmtrain: Command) -> None:
    outcome = llmtrain("tokenizer", "encode", "--tokenizer", "nowhere")
    assert outcome.code == 5
    assert "nowhere" in outcome.err


def test_checkpoint_is_a_tokenizer_directory_too(trained: Path, llmtrain: Command) -> None:
    checkpoint = max((trained / "checkpoints").iterdir())
    outcome = llmtrain("tokenizer", "encode", "--tokenizer", checkpoint, stdin=b"abc")
    assert (outcome.code, outcome.err) == (0, "")


def test_small_text_gives_fewer_pieces_and_says_so(llmtrain: Command, place: Path) -> None:
    (place / "small.txt").write_text("a small text\n" * 20)
    outcome = llmtrain(
        *("tokenizer", "train", "--data", "small.txt", "--vocab-size", 5000, "--out", "t")
    )
    assert outcome.code == 0
    assert "warning: " in outcome.err
    assert "5000" in outcome.err


def test_unwritable_place_is_a_usage_error(llmtrain: Command) -> None:
    outcome = llmtrain(
        *("tokenizer", "train", "--data", "corpus.txt", "--vocab-size", 320, "--out", "corpus.txt")
    )
    assert outcome.code == 2
    assert "corpus.txt" in outcome.err


def test_what_is_not_read_is_counted(llmtrain: Command, place: Path) -> None:
    notes = place / "notes"
    (notes / "old").mkdir(parents=True)
    (notes / "a.txt").write_text("some words " * 300, encoding="utf-8")
    (notes / "old" / "b.txt").write_text("other words " * 300, encoding="utf-8")
    (notes / "c.bin").write_bytes(b"\0" * 100)
    flags = ("--data", notes, "--vocab-size", "300", "--out", "tok", "--exclude", "old/")
    outcome = llmtrain("tokenizer", "train", *flags, "--json")
    assert outcome.code == 0
    assert outcome.document["documents"] == 1
    assert outcome.document["skipped"]["binary"] == 1
    assert "skipped 1 file: binary" in outcome.err


def test_a_failure_leaves_no_empty_directory(llmtrain: Command, place: Path) -> None:
    for out in ("new", "there"):
        (place / "there").mkdir(exist_ok=True)
        (place / "there" / "kept").touch()
        command = ("tokenizer", "train", "--data", "absent.txt", "--vocab-size", "300")
        assert llmtrain(*command, "--out", out, "--overwrite").code == 5
    assert not (place / "new").exists()
    assert (place / "there" / "kept").exists()


def test_what_is_there_is_replaced_only_on_request(llmtrain: Command, place: Path) -> None:
    """And then nothing is left of it: a tokenizer of one kind is not read as one of another."""
    command = ("tokenizer", "train", "--data", "corpus.txt", "--vocab-size", "300", "--out", "tok")
    assert llmtrain(*command, "--kind", "unigram").code == 0
    refused = llmtrain(*command)
    assert refused.code == 2
    assert "--out tok is not empty" in refused.err
    assert "--overwrite" in refused.err
    assert llmtrain(*command, "--overwrite").code == 0
    assert llmtrain(*command[:-1], "new").code == 0
    for name in {path.name for path in (place / "tok").iterdir()} | {"tokenizer.model"}:
        assert (place / "tok" / name).read_bytes() == (place / "new" / name).read_bytes()


def test_an_empty_name_of_a_field_is_a_usage_error(llmtrain: Command) -> None:
    flags = ("--text-field", "", "--vocab-size", "300", "--out", "tok")
    outcome = llmtrain("tokenizer", "train", "--data", "corpus.txt", *flags)
    assert outcome.code == 2
    assert "--text-field" in outcome.err


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_ids_are_written_through_a_link(tokenizer: Path, llmtrain: Command, place: Path) -> None:
    (place / "real.bin").write_bytes(b"old")
    (place / "link.bin").symlink_to(place / "real.bin")
    flags = ("--tokenizer", tokenizer, "corpus.txt", "--out", "link.bin")
    assert llmtrain("tokenizer", "encode", *flags).code == 0
    assert (place / "link.bin").is_symlink()
    assert len((place / "real.bin").read_bytes()) > 100


def test_kind_and_reserved_pieces_are_as_asked(llmtrain: Command, place: Path) -> None:
    flags = ("--data", "corpus.txt", "--vocab-size", 360, "--kind", "unigram", "--reserve", 5)
    document = llmtrain("tokenizer", "train", *flags, "--out", "u", "--json").document
    assert (document["kind"], document["reserved"]) == ("unigram", 5)
    assert document["vocab_size_reason"] is None
    assert sorted(path.name for path in (place / "u").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer_kind.json",
    ]
    text = b"<|reserved_4|> is  text \xe2\x96\x81\r\n"
    encoded = llmtrain("tokenizer", "encode", "--tokenizer", "u", stdin=text).out
    decoded = llmtrain("tokenizer", "decode", "--tokenizer", "u", stdin=encoded.encode())
    assert decoded.out.encode() == text


def test_the_size_is_chosen_with_its_reason(llmtrain: Command) -> None:
    flags = ("--data", "builtin:python", "--max-bytes", "200KB", "--vocab-size", "auto")
    outcome = llmtrain("tokenizer", "train", *flags, "--parameters", "2M", "--out", "a", "--json")
    assert outcome.document["requested_vocab_size"] == 1088
    assert "Tao et al. 2024" in outcome.document["vocab_size_reason"]
    assert "1088 pieces" in outcome.err


@pytest.mark.parametrize(
    "flags",
    [
        ("--vocab-size", "many"),
        ("--vocab-size", "auto", "--parameters", "some"),
        ("--vocab-size", 400, "--max-bytes", "lots"),
        ("--vocab-size", 400, "--reserve", 2000),
        ("--vocab-size", 400, "--reserve", -1),
        ("--vocab-size", 12),
    ],
)
def test_wishes_that_cannot_be_met_are_usage_errors(flags: Any, llmtrain: Command) -> None:
    outcome = llmtrain("tokenizer", "train", "--data", "corpus.txt", *flags, "--out", "t")
    assert outcome.code == 2
    assert str(flags[-1]) in outcome.err


@pytest.fixture
def foreign(place: Path) -> Path:
    """A tokenizer.json of bytes, as others make them."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([(place / "corpus.txt").read_text()], trainer)
    made.save(str(place / "foreign.json"))
    return place / "foreign.json"


def test_a_foreign_tokenizer_is_imported_and_trained_with(
    foreign: Path, llmtrain: Command, place: Path
) -> None:
    imported = llmtrain("tokenizer", "import", foreign, "--out", "t", "--json").document
    assert imported["vocab_size"] == 321
    assert (imported["separator"], imported["added_separator"]) == ("<|endoftext|>", True)

    text = b"".join(AWKWARD)
    encoded = llmtrain("tokenizer", "encode", "--tokenizer", "t", stdin=text).out
    theirs = tokenizers.Tokenizer.from_file(str(foreign))
    assert encoded.split() == [str(token) for token in theirs.encode(text.decode()).ids]

    train = ("train", "--profile", "tiny.yaml", "--out", "run", "--tokenizer", "t", "-q")
    assert llmtrain(*train).code == 0
    checkpoint = place / "run" / "checkpoints" / "step-00000020"
    assert (checkpoint / "tokenizer.json").read_bytes() == (place / "t/tokenizer.json").read_bytes()
    again = llmtrain("tokenizer", "encode", "--tokenizer", checkpoint, stdin=text).out
    assert again == encoded
    assert llmtrain("eval", "run").code == 0
    assert llmtrain("generate", "run", "--max-tokens", 5).code == 0
    assert llmtrain("train", "--resume", "run", "--steps", 25).code == 0


def test_a_foreign_file_is_trained_with_as_it_is(foreign: Path, llmtrain: Command) -> None:
    train = ("train", "--profile", "tiny.yaml", "--out", "run", "--tokenizer", foreign, "-q")
    assert llmtrain(*train).code == 0
    assert llmtrain("generate", "run", "--max-tokens", 5).code == 0


def test_a_profile_names_the_kind(llmtrain: Command, place: Path) -> None:
    kind = ("--set", "data.tokenizer_kind=unigram", "--set", "model.vocab_size=360")
    assert llmtrain("train", "-p", "tiny.yaml", "--out", "run", "-q", *kind).code == 0
    checkpoint = place / "run" / "checkpoints" / "step-00000020"
    said = json.loads((checkpoint / "tokenizer_kind.json").read_text())
    assert said["name"] == "huggingface"
    assert '"type": "Unigram"' in (checkpoint / "tokenizer.json").read_text()
    assert llmtrain("generate", "run", "--max-tokens", 5).code == 0


def test_ids_are_written_raw(tokenizer: Path, llmtrain: Command, place: Path) -> None:
    told = llmtrain("tokenizer", "encode", "--tokenizer", tokenizer, "corpus.txt", "--json")
    outcome = llmtrain(
        *("tokenizer", "encode", "--tokenizer", tokenizer, "corpus.txt", "--out", "ids.bin"),
        "--json",
    )
    ids = np.fromfile(place / "ids.bin", dtype="<u2").tolist()
    assert ids == told.document["ids"]
    assert outcome.document["tokens"] == len(ids)
    (place / "corpus.txt").write_bytes(b"a\xff")
    failed = llmtrain(
        *("tokenizer", "encode", "--tokenizer", tokenizer, "corpus.txt", "--out", "new.bin")
    )
    assert failed.code == 5
    assert not (place / "new.bin").exists()


def test_raw_ids_are_read_back(tokenizer: Path, llmtrain: Command, place: Path) -> None:
    flags = ("--tokenizer", tokenizer)
    assert llmtrain("tokenizer", "encode", *flags, "corpus.txt", "--out", "ids.bin").code == 0
    decoded = llmtrain("tokenizer", "decode", *flags, "ids.bin", "--raw")
    assert decoded.out == (place / "corpus.txt").read_text(encoding="utf-8")
    unread = llmtrain("tokenizer", "decode", *flags, "ids.bin")
    assert (unread.code, "--raw" in unread.err) == (5, True)
    cut = llmtrain("tokenizer", "decode", *flags, "--raw", stdin=b"\x20\x01\x20")
    assert (cut.code, "stdin ends within an id" in cut.err) == (5, True)


def test_megabytes_go_through_pipes(tokenizer: Path, process: ProcessCommand, place: Path) -> None:
    text = (b"".join(AWKWARD) + "wörter und Zahlen 123 \U0001f600".encode()) * 12_000
    (place / "text").write_bytes(text)
    encoded = process("tokenizer", "encode", "--tokenizer", tokenizer, "text")
    decoded = process(
        "tokenizer", "decode", "--tokenizer", tokenizer, stdin=None, input=encoded.stdout
    )
    assert decoded.stdout == text


@pytest.mark.parametrize("at", [5, (1 << 20) - 1, 1 << 20])
def test_what_is_not_utf8_has_an_offset_wherever_it_is(
    at: int, tokenizer: Path, llmtrain: Command
) -> None:
    text = b"a " * (at // 2) + b"a" * (at % 2) + b"\xf0\x9f\x98"
    for rest in (b"", b" and more"):
        outcome = llmtrain("tokenizer", "encode", "--tokenizer", tokenizer, stdin=text + rest)
        assert outcome.code == 5
        assert f"byte {at}" in outcome.err


def test_inspect_shows_sources_and_others(tokenizer: Path, llmtrain: Command, place: Path) -> None:
    (place / "second.txt").write_text("a second text\n" * 9)
    flags = ("--data", "corpus.txt", "--data", "second.txt", "--beside", tokenizer)
    command = ("tokenizer", "inspect", "--tokenizer", tokenizer, *flags)
    document = llmtrain(*command, "--json").document
    assert [fit["name"] for fit in document["sources"]] == ["corpus.txt", "second.txt"]
    assert document["beside"][0]["tokens"] == document["sample_tokens"]
    plain = llmtrain(*command)
    assert plain.code == 0
    assert plain.out.count("bytes per token") == 4
    assert "rarest pieces" in plain.out


def test_inspect_without_text_has_no_rates(tokenizer: Path, llmtrain: Command) -> None:
    document = llmtrain("tokenizer", "inspect", "--tokenizer", tokenizer, "--json").document
    assert document["bytes_per_token"] is document["unused_share"] is None
    assert document["sources"] == document["beside"] == []


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_a_reader_that_leaves_is_no_failure(
    verb: str, tokenizer: Path, process: ProcessCommand, place: Path
) -> None:
    (place / "text").write_text("12 13 14 " * 300_000)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process(
            *("tokenizer", verb, "--tokenizer", tokenizer, "text"),
            capture_output=False,
            stdout=writer,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_imported_bos_is_told(tmp_path: Path, llmtrain: Command) -> None:
    STYLES["llama_3"]().save(tmp_path / "model")
    outcome = llmtrain("tokenizer", "import", tmp_path / "model", "--out", tmp_path / "tok")
    assert outcome.code == 0
    names = ("separator <|end_of_text|>", "<|begin_of_text|>", "begins documents")
    assert all(name in outcome.out for name in names)
