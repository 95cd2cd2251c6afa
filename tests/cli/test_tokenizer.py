from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
def tokenizer(llmtrain: Any, place: Path) -> Path:
    made = llmtrain(
        *("tokenizer", "train", "--data", "corpus.txt", "--vocab-size", 320, "--out", "t", "-q")
    )
    assert made.code == 0, made.err
    return place / "t"


@pytest.mark.parametrize("text", AWKWARD)
def test_every_text_comes_back(text: bytes, tokenizer: Path, llmtrain: Any) -> None:
    encoded = llmtrain("tokenizer", "encode", "--tokenizer", tokenizer, stdin=text)
    assert encoded.code == 0
    assert encoded.out.endswith("\n")

    decoded = llmtrain("tokenizer", "decode", "--tokenizer", tokenizer, stdin=encoded.out.encode())

    assert decoded.code == 0
    assert decoded.out == text.decode()


def test_bytes_come_back_through_pipes_and_files(
    tokenizer: Path, process: Any, place: Path
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
def test_junk_is_no_token(ids: bytes, word: str, tokenizer: Path, llmtrain: Any) -> None:
    outcome = llmtrain("tokenizer", "decode", "--tokenizer", tokenizer, stdin=ids)

    assert (outcome.code, outcome.out) == (5, "")
    assert word in outcome.err


def test_text_that_is_not_utf8_is_told_with_its_offset(tokenizer: Path, llmtrain: Any) -> None:
    outcome = llmtrain("tokenizer", "encode", "--tokenizer", tokenizer, stdin=b"good \xff")

    assert (outcome.code, outcome.out) == (5, "")
    assert "stdin" in outcome.err
    assert "byte 5" in outcome.err


def test_directory_without_a_tokenizer(llmtrain: Any) -> None:
    outcome = llmtrain("tokenizer", "encode", "--tokenizer", "nowhere")
    assert outcome.code == 5
    assert "nowhere" in outcome.err


def test_checkpoint_is_a_tokenizer_directory_too(trained: Path, llmtrain: Any) -> None:
    checkpoint = max((trained / "checkpoints").iterdir())
    outcome = llmtrain("tokenizer", "encode", "--tokenizer", checkpoint, stdin=b"abc")
    assert (outcome.code, outcome.err) == (0, "")


def test_small_text_gives_fewer_pieces_and_says_so(llmtrain: Any, place: Path) -> None:
    (place / "small.txt").write_text("a small text\n" * 20)
    outcome = llmtrain(
        *("tokenizer", "train", "--data", "small.txt", "--vocab-size", 5000, "--out", "t")
    )
    assert outcome.code == 0
    assert "warning: " in outcome.err
    assert "5000" in outcome.err


def test_unwritable_place_is_a_usage_error(llmtrain: Any) -> None:
    outcome = llmtrain(
        *("tokenizer", "train", "--data", "corpus.txt", "--vocab-size", 320, "--out", "corpus.txt")
    )
    assert outcome.code == 2
    assert "corpus.txt" in outcome.err
