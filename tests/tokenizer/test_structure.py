"""What sentencepiece is given to parse is a short list of short pieces without tables."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.errors import DataError
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.sentencepiece_codec import SentencePieceCodec
from llmtrain.tokenizer.structure import (
    require_sound,
    with_control_piece,
    with_pieces_respelt,
)


def varint(number: int) -> bytes:
    head, rest = number & 0x7F, number >> 7
    return bytes([head | 0x80]) + varint(rest) if rest else bytes([head])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text: bytes, score: float = 0.0) -> bytes:
    return field(1, field(1, text) + varint(2 << 3 | 5) + struct.pack("<f", score))


def test_a_trained_model_is_sound(tokenizer: Tokenizer) -> None:
    require_sound(tokenizer.model)


def test_a_small_model_is_sound() -> None:
    require_sound(piece(b"a") + piece(b"x" * 1000) + field(2, b"\x08\x01") + field(3, b""))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (b"", "it is empty"),
        (field(2, b""), "0 pieces"),
        (piece(b"a" * 1024), "where 1024 are the most"),
        (piece(b"a") + field(2, b"x" * 70_000), "where 65536 are the most"),
        (piece(b"a") + field(4, b"x" * 70_000), "where 65536 are the most"),
        (piece(b"a") + field(3, field(2, b"table")), "table of replacements"),
        (piece(b"a") + field(5, field(2, b"table")), "table of replacements"),
        (piece(b"a") + field(6, b""), "not a sentencepiece model"),
        (piece(b"a") + field(0, b""), "not a sentencepiece model"),
        (piece(b"a") + field(1 << 40, b""), "not a sentencepiece model"),
        (piece(b"a") + varint(1 << 3), "cut off"),
        (piece(b"a") + varint(1 << 3) + b"\0", "not a sentencepiece model"),
        (piece(b"a") + bytes([1 << 3 | 3]), "not a sentencepiece model"),
        (piece(b"a")[:-1], "cut off"),
        (piece(b"a") + b"\x0a" + varint(2**63), "cut off"),
        (piece(b"a") + b"\x0a" + b"\xff" * 9, "cut off"),
        (piece(b"a") + b"\xff" * 100, "cut off"),
        (b"\x0a\0" * ((1 << 20) + 1), "pieces, and 1048576 are the most"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_not_sound_is_refused(model: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        require_sound(model)
    with pytest.raises(DataError, match=reason):
        Tokenizer.of_model(model)


@given(st.binary())
def test_any_bytes_are_sound_or_refused(data: bytes) -> None:
    try:
        require_sound(data)
    except DataError:
        return
    assert data[0] == 0x0A or field(1, b"") in data or b"\x0a" in data


def test_a_model_whose_unknown_token_is_no_text_is_refused(tokenizer: Tokenizer) -> None:
    surface = field(2, varint(44 << 3 | 2) + b"\x01\xc0")  # trainer_spec.unk_surface
    with pytest.raises(DataError, match="not a sentencepiece model"):
        Tokenizer.of_model(tokenizer.model + surface)  # messages that follow are merged


def test_damaged_models_do_not_end_the_process(tokenizer: Tokenizer) -> None:
    """In a process of its own: a library in C++ could take this one with it."""
    code = """
import random, sys
from llmtrain.errors import DataError
from llmtrain.tokenizer import Tokenizer
model = sys.stdin.buffer.read()
refused = 0
for seed in range(300):
    draw = random.Random(seed)
    damaged = bytearray(model)
    for _ in range(draw.randint(1, 3)):
        place = draw.choice([draw.randrange(len(damaged)), -1 - draw.randrange(300)])
        damaged[place] = draw.choice([0, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    try:
        Tokenizer.of_model(bytes(damaged)).encode("some text")
    except DataError:
        refused += 1
print(refused)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=tokenizer.model,
        capture_output=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_respelling_touches_the_text_of_pieces_alone() -> None:
    model = piece(b"a-b", 1.5) + field(2, b"-" * 300) + piece(b"-" * 200) + piece(b"c")
    expected = piece(b"a+++b", 1.5) + field(2, b"-" * 300) + piece(b"+++" * 200) + piece(b"c")
    assert with_pieces_respelt(model, b"-", b"+++") == expected
    assert with_pieces_respelt(model, b"x", b"y") == model


def test_a_control_piece_comes_last(tokenizer: Tokenizer) -> None:
    for name in ("<end>", "x" * 300):
        codec = SentencePieceCodec(with_control_piece(tokenizer.model, name))
        *before, last = codec.pieces()
        assert (last.text, last.kind) == (name, "control")
        assert len(before) == tokenizer.vocab_size
        assert codec.encode("some text") == tokenizer.encode("some text")
