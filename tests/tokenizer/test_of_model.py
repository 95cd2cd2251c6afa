"""The tokenizer of a model's directory, and control pieces added to one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.of_model import tokenizer_of_model, with_reserved_pieces
from tests.data.fixed import TOKENIZER, fixed_texts


def byte_level(directory: Path, *, normalizes: bool = False) -> Path:
    """A tokenizer.json of the 256 bytes and one merge, as models have them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: token for token, letter in enumerate([*letters, "th"])}
    library = Library(models.BPE(vocabulary, [("t", "h")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    if normalizes:
        library.normalizer = normalizers.NFC()
    library.add_special_tokens(["<|im_end|>"])
    library.save(str(directory / "tokenizer.json"))
    config = json.dumps({"eos_token": "<|im_end|>"})
    (directory / "tokenizer_config.json").write_text(config)
    return directory


def test_one_of_ours_is_ours_again(tmp_path: Path) -> None:
    own = Tokenizer.load(TOKENIZER)
    own.save(tmp_path)
    found, warnings = tokenizer_of_model(tmp_path)
    assert (found.fingerprint, warnings) == (own.fingerprint, ())


def test_the_separator_is_the_end_token_that_the_model_has(tmp_path: Path) -> None:
    tokenizer, warnings = tokenizer_of_model(byte_level(tmp_path))
    assert tokenizer.piece(tokenizer.separator_id) == "<|im_end|>"
    assert warnings == ()


def test_one_that_changes_text_is_taken_with_a_warning(tmp_path: Path) -> None:
    """The model was trained with it, so there is no other."""
    _, warnings = tokenizer_of_model(byte_level(tmp_path, normalizes=True))
    assert len(warnings) == 1
    assert "NFC" in warnings[0]


@pytest.mark.parametrize("kind", ["own", "huggingface"])
def test_reserved_pieces_come_last_and_change_no_ids(kind: str, tmp_path: Path) -> None:
    if kind == "own":
        before = Tokenizer.load(TOKENIZER)
    else:
        before, _ = tokenizer_of_model(byte_level(tmp_path))
    once = with_reserved_pieces(before, 2)
    after = with_reserved_pieces(once, 1)
    assert after.vocab_size == before.vocab_size + 3
    assert after.separator_id == before.separator_id
    for text in (*fixed_texts()[:20], "<|reserved_0|>"):
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == text
    added = after.pieces()[before.vocab_size :]
    assert [(piece.text, piece.kind) for piece in added] == [
        (f"<|reserved_{number}|>", "control") for number in range(3)
    ]
    after.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint == after.fingerprint
