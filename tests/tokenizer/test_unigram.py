"""A unigram vocabulary is as lossless, and Hugging Face reads it with the same ids."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmtrain.errors import UsageError
from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.tokenizer.escape import ESCAPE, SPACE_MARK
from llmtrain.tokenizer.piece import SEPARATOR

tricky = st.text(
    st.characters(codec="utf-8") | st.sampled_from([ESCAPE, SPACE_MARK, *" 01<>|unkx0AFdoft_"])
)


@pytest.fixture(scope="module")
def unigram(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents[::12], vocab_size=1_000, kind="unigram").tokenizer


@pytest.fixture(scope="module")
def directory(unigram: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unigram")
    unigram.save(path, model_max_length=512)
    return path


def test_any_text_round_trips(unigram: Tokenizer) -> None:
    @given(tricky)
    def law(text: str) -> None:
        assert unigram.decode(unigram.encode(text)) == text

    law()


def test_adversarial_text_and_documents_round_trip(
    unigram: Tokenizer, compared: list[str], adversarial: list[str]
) -> None:
    texts = [*adversarial, *compared, *(piece.text for piece in unigram.pieces())]
    encoded = unigram.encode_batch(texts, threads=2)
    assert [unigram.decode(ids) for ids in encoded] == texts
    assert encoded == [unigram.encode(text) for text in texts]
    assert not {0, unigram.separator_id} & {token for ids in encoded for token in ids}


def test_a_text_that_lacks_the_letters_of_a_name_teaches_them() -> None:
    tokenizer = train_tokenizer(["ab ba " * 200], vocab_size=400, kind="unigram").tokenizer
    for name in (SEPARATOR, "<unk>", "<0x0A>", "<|reserved_0|>"):
        assert len(tokenizer.encode(name)) == len(name)


def test_the_library_and_transformers_have_the_same_ids(
    unigram: Tokenizer, directory: Path, compared: list[str], adversarial: list[str]
) -> None:
    library = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    library.encode_special_tokens = True
    theirs = AutoTokenizer.from_pretrained(directory)
    for text in (*adversarial, *compared):
        ids = unigram.encode(text)
        assert library.encode(text).ids == ids
        assert theirs(text, verbose=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == unigram.separator_id


def test_it_compresses(unigram: Tokenizer, documents: list[str]) -> None:
    text = "".join(documents[1:600:37])
    assert len(text.encode()) / len(unigram.encode(text)) > 1.8  # bytes a token
    assert sum(piece.kind == "byte" for piece in unigram.pieces()) == 256
    assert len(unigram.encode("2024")) == 4


def test_it_is_the_same_after_saving_and_learning_again(
    unigram: Tokenizer, directory: Path, documents: list[str]
) -> None:
    again = train_tokenizer(documents[::12], vocab_size=1_000, kind="unigram").tokenizer
    travelled = pickle.loads(pickle.dumps(unigram))  # noqa: S301
    for other in (Tokenizer.load(directory), again, travelled):
        assert other.fingerprint == unigram.fingerprint


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_reserved_pieces_are_of_no_text(kind: str, tmp_path: Path) -> None:
    text = "some words <|reserved_0|> and <|reserved_2|> more\n" * 40
    made = train_tokenizer([text], vocab_size=420, kind=kind, reserved=3)  # type: ignore[arg-type]
    made.tokenizer.save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    names = {piece.text: n for n, piece in enumerate(tokenizer.pieces()) if piece.kind == "control"}
    assert set(names) == {"<|reserved_0|>", "<|reserved_1|>", "<|reserved_2|>"}
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {*names.values(), tokenizer.separator_id}
    assert tokenizer.decode([*names.values(), *ids, *names.values()]) == text
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == ids
    assert theirs.convert_tokens_to_ids("<|reserved_1|>") == names["<|reserved_1|>"]
    assert theirs.decode([*names.values(), *ids], skip_special_tokens=True) == text


@pytest.mark.parametrize("count", [-1, 1025])
def test_too_many_reserved_pieces_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match="0 to 1024"):
        train_tokenizer(["text"], vocab_size=4000, reserved=count)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_without_room_names_a_minimum_that_works(kind: str) -> None:
    with pytest.raises(UsageError, match="at least") as caught:
        train_tokenizer(["hello"], vocab_size=200, kind=kind, reserved=5)  # type: ignore[arg-type]
    minimum = int(caught.value.message.split("at least ")[1].split(",")[0])
    made = train_tokenizer(
        ["hello " * 50],
        vocab_size=minimum + 8,
        kind=kind,  # type: ignore[arg-type]
        reserved=5,
    )
    assert made.tokenizer.vocab_size <= minimum + 8


def test_the_size_may_follow_the_text() -> None:
    seen: list[int] = []

    def size(text_bytes: int) -> int:
        seen.append(text_bytes)
        return 300

    made = train_tokenizer(["hello world\n" * 30, "and more\n"], vocab_size=size)
    assert made.requested_vocab_size == 300
    assert seen == [made.bytes_seen] == [12 * 30 + 9]
