"""transformers gives the same ids for every text, and the same text back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.tokenizer.escape import ESCAPE, SPACE_MARK
from llmtrain.tokenizer.huggingface import bpe_json
from llmtrain.tokenizer.piece import SEPARATOR, UNKNOWN, Piece


@pytest.fixture(scope="module")
def foreign(saved: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(saved)


def require_equal(ours: Tokenizer, theirs: PreTrainedTokenizerFast, text: str) -> None:
    ids = ours.encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text


def test_documents_have_the_same_ids(
    tokenizer: Tokenizer, foreign: PreTrainedTokenizerFast, documents: list[str]
) -> None:
    assert len(documents) >= 500
    encoded = tokenizer.encode_batch(documents, threads=2)
    # Without the warning that a text is longer than model_max_length.
    assert foreign(documents, verbose=False)["input_ids"] == encoded
    assert foreign.batch_decode(encoded) == documents


def test_adversarial_text_has_the_same_ids(
    tokenizer: Tokenizer, foreign: PreTrainedTokenizerFast, adversarial: list[str]
) -> None:
    for text in adversarial:
        require_equal(tokenizer, foreign, text)


def test_any_text_has_the_same_ids(tokenizer: Tokenizer, foreign: PreTrainedTokenizerFast) -> None:
    @given(st.text(st.characters(codec="utf-8") | st.sampled_from(f"{ESCAPE}{SPACE_MARK} 01<>")))
    def law(text: str) -> None:
        require_equal(tokenizer, foreign, text)

    law()


def test_overlapping_repetitions_have_the_same_ids(tmp_path: Path) -> None:
    """Where one piece can be joined from several pairs, both join the same one."""
    corpus = ["aab abab aabaab bbab\n" * 40, "abaab" * 200, "ba ab aa bb " * 50]
    ours = train_tokenizer(corpus, vocab_size=500).tokenizer
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)

    @given(st.text(st.sampled_from("aab \n"), max_size=80))
    def law(text: str) -> None:
        require_equal(ours, theirs, text)

    law()


def test_no_merge_makes_a_control_token() -> None:
    controls = [Piece(UNKNOWN, 0, "unknown"), Piece(SEPARATOR, 0, "separator")]
    texts = ["<|", SEPARATOR[2:], "<", "|", "<unk", ">"]
    pieces = controls + [Piece(text, -score, "text") for score, text in enumerate(texts)]
    assert json.loads(bpe_json(pieces))["model"]["merges"] == [["<", "|"]]


def test_the_special_tokens_are_ours(
    tokenizer: Tokenizer, foreign: PreTrainedTokenizerFast
) -> None:
    assert foreign.bos_token_id == foreign.eos_token_id == tokenizer.separator_id
    assert foreign.unk_token_id == 0
    assert foreign.pad_token_id == 0  # not the end, which fine-tuning has to learn
    assert len(foreign) == tokenizer.vocab_size
    assert foreign.get_vocab() == {piece.text: i for i, piece in enumerate(tokenizer.pieces())}
    assert foreign.decode([tokenizer.separator_id], skip_special_tokens=True) == ""
    assert set(foreign("text")) == {"input_ids", "attention_mask"}


def test_a_batch_is_padded(foreign: PreTrainedTokenizerFast) -> None:
    batch = foreign(["one", "one two three four"], padding=True)
    lengths = [len(ids) for ids in batch["input_ids"]]
    assert lengths[0] == lengths[1]
    assert 0 in batch["attention_mask"][0]


def test_names_of_tokens_are_tokens_where_that_is_asked(saved: Path) -> None:
    recognizing = AutoTokenizer.from_pretrained(saved, split_special_tokens=False)
    assert recognizing(f"one{SEPARATOR}")["input_ids"][-1] == recognizing.eos_token_id
    recognizing.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    assert recognizing("<|user|>")["input_ids"] == [len(recognizing) - 1]


def test_llama_cpp_is_told_of_no_space_before_texts(saved: Path) -> None:
    """Its converter reads `add_prefix_space`, and puts a space there by default."""
    config = json.loads((saved / "tokenizer_config.json").read_text("utf-8"))
    assert config["add_prefix_space"] is False


def test_the_context_is_written_where_there_is_one(saved: Path, tmp_path: Path) -> None:
    Tokenizer.load(saved).save(tmp_path)
    named, unnamed = (
        json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
        for directory in (saved, tmp_path)
    )
    assert named.pop("model_max_length") == 512
    assert named == unnamed
