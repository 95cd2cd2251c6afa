"""A vocabulary of the size that was asked for, or as large as the text allows, or a clear error."""

import io

import pytest
from sentencepiece import SentencePieceTrainer

from llmtrain.errors import DataError, UsageError
from llmtrain.tokenizer import Tokenizer, train_tokenizer, training
from llmtrain.tokenizer.piece import SEPARATOR, UNKNOWN
from llmtrain.tokenizer.sentencepiece_codec import SentencePieceCodec
from llmtrain.tokenizer.training import VocabularySpec, learn_vocabulary


def test_the_vocabulary_has_the_size_that_was_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 3_000


def test_every_piece_has_one_id_and_the_fixed_ones_come_first(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.pieces()
    assert len({piece.text for piece in pieces}) == len(pieces) == tokenizer.vocab_size
    assert [piece.text for piece in pieces[:2]] == [UNKNOWN, SEPARATOR]
    assert [piece.kind for piece in pieces[:2]] == ["unknown", "separator"]
    assert [piece.text for piece in pieces[2:258]] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert {piece.kind for piece in pieces[2:258]} == {"byte"}
    assert {piece.kind for piece in pieces[258:]} == {"text"}


def test_training_again_gives_the_same_model(documents: list[str]) -> None:
    first, second = (train_tokenizer(documents[:40], vocab_size=600) for _ in range(2))
    assert first.tokenizer.fingerprint == second.tokenizer.fingerprint


def test_sampling_again_gives_the_same_model(documents: list[str]) -> None:
    first, second = (
        train_tokenizer(iter(documents[:100]), vocab_size=600, max_bytes=50_000) for _ in range(2)
    )
    assert first.bytes_used <= 50_000 < first.bytes_seen
    assert first.tokenizer.fingerprint == second.tokenizer.fingerprint


def test_pieces_learn_line_ends_and_indentation(tokenizer: Tokenizer) -> None:
    texts = [piece.text for piece in tokenizer.pieces()]
    assert "▁▁▁▁" in texts
    assert any("\n" in text and len(text) > 1 for text in texts)


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("2024")) == 4


@pytest.mark.parametrize(
    "text", ["hello\n", "a", "a" * 5_000, " ", "\t", "▁", "\ufeff", "▅", "中文"]
)
def test_a_small_corpus_gives_a_small_lossless_vocabulary(text: str) -> None:
    trained = train_tokenizer([text], vocab_size=32_000)
    assert 259 <= trained.tokenizer.vocab_size < 400
    assert trained.requested_vocab_size == 32_000
    anything = f" {text} and else é▁\n"
    assert trained.tokenizer.decode(trained.tokenizer.encode(anything)) == anything


def test_as_many_pieces_as_the_text_has_is_not_an_error(documents: list[str]) -> None:
    largest = train_tokenizer(documents[:1], vocab_size=100_000).tokenizer.vocab_size
    assert train_tokenizer(documents[:1], vocab_size=largest).tokenizer.vocab_size == largest


@pytest.mark.parametrize("documents", [[], [""], ["\n", "\r\n"], ["\x00"]])
def test_no_text_is_a_data_error(documents: list[str]) -> None:
    with pytest.raises(DataError, match="no text") as caught:
        train_tokenizer(documents, vocab_size=300)
    assert caught.value.hint


def test_a_lone_surrogate_is_a_data_error() -> None:
    with pytest.raises(DataError, match="surrogate"):
        train_tokenizer(["fine", "not \ud800 fine"], vocab_size=300)


def test_a_vocabulary_without_room_for_bytes_names_the_minimum() -> None:
    with pytest.raises(UsageError, match="at least 259"):
        train_tokenizer(["hello"], vocab_size=258)


def test_a_vocabulary_without_room_for_characters_names_a_minimum_that_works() -> None:
    documents = ["".join(chr(0x4E00 + number) for number in range(600))]
    with pytest.raises(UsageError, match="at least") as caught:
        train_tokenizer(documents, vocab_size=500)
    minimum = int(caught.value.message.split("at least ")[1].split(",")[0])
    assert train_tokenizer(documents, vocab_size=minimum).tokenizer.vocab_size == minimum
    with pytest.raises(UsageError, match=f"at least {minimum}"):
        train_tokenizer(documents, vocab_size=minimum - 1)


def test_rare_characters_give_way_in_a_small_vocabulary() -> None:
    rare = "".join(chr(0x4E00 + number) for number in range(500))
    trained = train_tokenizer(["common words " * 4_000 + rare], vocab_size=500)
    assert trained.character_coverage < 0.9999
    assert trained.tokenizer.decode(trained.tokenizer.encode(rare)) == rare


def test_a_document_with_a_reserved_character_is_learnt_from() -> None:
    trained = train_tokenizer(["plain\n" * 50, "zebra ▅ zebra " * 50], vocab_size=290)
    assert len(trained.tokenizer.encode(" zebra")) < 6


def test_names_of_tokens_in_the_corpus_are_not_learnt_as_tokens() -> None:
    tokenizer = train_tokenizer([f"{SEPARATOR}<0x41> " * 500], vocab_size=290).tokenizer
    assert tokenizer.separator_id not in tokenizer.encode(SEPARATOR)


def test_the_space_mark_in_the_corpus_is_not_a_space() -> None:
    tokenizer = train_tokenizer(["▁word" * 500], vocab_size=400).tokenizer
    assert "▁word" not in [piece.text for piece in tokenizer.pieces()]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(["hello world\n" * 100], vocab_size=32_000)
    with pytest.raises(UsageError):
        train_tokenizer(["hello world\n" * 100], vocab_size=262)
    assert capfd.readouterr() == ("", "")


def learnt_from_documents(texts: list[str]) -> SentencePieceCodec:
    """As sentencepiece learns where it splits documents into words and counts them itself."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=1_500,
        hard_vocab_limit=False,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        split_digits=True,
        required_chars="▁",
        max_sentence_length=1 << 30,
        unk_surface="",
        bos_piece=SEPARATOR,
        eos_id=-1,
        minloglevel=3,
    )
    return SentencePieceCodec(model.getvalue())


def test_counted_words_teach_what_documents_teach(documents: list[str]) -> None:
    # sentencepiece itself loses the line end that a document ends with.
    texts = [text.replace("\t", "    ").rstrip("\r\n") for text in documents[::6]]
    ours = SentencePieceCodec(learn_vocabulary(texts, VocabularySpec(1_500)).model_proto)
    assert ours.pieces() == learnt_from_documents(texts).pieces()


def test_words_beyond_the_memory_for_them_are_left_out_rarest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common, rare = (
        ["the", "answer"],
        [f"{chr(97 + n % 26)}{chr(97 + n // 26)}qx" for n in range(600)],
    )
    texts = [" ".join(common)] * 50 + [" ".join(rare)]
    spec = VocabularySpec(300)
    whole = learn_vocabulary(texts, spec).model_proto
    every = sum(len(word) for word in {*(" " + word for word in [*common, *rare]), "the", "aaqx"})
    monkeypatch.setattr(training, "_MOST_WORD_CHARACTERS", every)
    assert learn_vocabulary(texts, spec).model_proto == whole
    monkeypatch.setattr(training, "_MOST_WORD_CHARACTERS", 10)
    some = [
        piece.text
        for piece in SentencePieceCodec(learn_vocabulary(texts, spec).model_proto).pieces()
    ]
    assert any("answer" in text for text in some)
    assert not any("qx" in text for text in some)


def test_tabs_are_learnt_like_any_character() -> None:
    line = "\t\tname\tvalue\t\n"
    tokenizer = train_tokenizer([line * 200, "\u2409"], vocab_size=400).tokenizer
    assert "\t\t" in [piece.text for piece in tokenizer.pieces()]
    assert len(tokenizer.encode(line)) < 8
    assert not any("\u2409" in piece.text for piece in tokenizer.pieces())
    assert tokenizer.decode(tokenizer.encode(line + "\u2409")) == line + "\u2409"


@pytest.mark.parametrize("vocab_size", [2**20 + 1, 2**31, 2**63, 10**30])
def test_a_vocabulary_beyond_every_reader_is_refused_before_the_text_is_read(
    vocab_size: int,
) -> None:
    unread = iter(["text"])
    with pytest.raises(UsageError, match="too large"):
        train_tokenizer(unread, vocab_size=vocab_size)
    assert next(unread) == "text"
