"""Every string comes back as it went in; what cannot be used is refused by name."""

import io
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer

from llmtrain.errors import DataError
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.escape import escape


def test_any_text_round_trips(tokenizer: Tokenizer) -> None:
    @given(st.text(st.characters(codec="utf-8")))
    def law(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == text

    law()


def test_adversarial_text_round_trips(tokenizer: Tokenizer, adversarial: list[str]) -> None:
    encoded = tokenizer.encode_batch(adversarial, threads=2)
    assert [tokenizer.decode(ids) for ids in encoded] == adversarial


def test_documents_round_trip(tokenizer: Tokenizer, documents: list[str]) -> None:
    encoded = tokenizer.encode_batch(documents, threads=2)
    assert [tokenizer.decode(ids) for ids in encoded] == documents


def test_ids_do_not_depend_on_threads(tokenizer: Tokenizer, documents: list[str]) -> None:
    texts = ["", *documents[:50], ""]
    one_by_one = [tokenizer.encode(text) for text in texts]
    assert all(tokenizer.encode_batch(texts, threads) == one_by_one for threads in (1, 2, 3))


@pytest.mark.parametrize("separator", ["", " ", "  \n  ", "▁"])
def test_long_text_has_the_ids_of_text_that_was_never_cut(
    tokenizer: Tokenizer, documents: list[str], separator: str
) -> None:
    text = separator.join(documents[:30])
    assert tokenizer.encode(text) == tokenizer._codec._processor.encode(escape(text))


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_surrogates_are_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode(text)
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode_batch(["fine", text], threads=2)


def test_no_text_becomes_a_control_token(tokenizer: Tokenizer, adversarial: list[str]) -> None:
    ids = {token for text in adversarial for token in tokenizer.encode(text)}
    assert not ids & {0, tokenizer.separator_id}
    assert len(tokenizer.encode("<0x41>")) > 1


def test_the_separator_decodes_to_nothing(tokenizer: Tokenizer) -> None:
    separator = [tokenizer.separator_id]
    ids = separator + tokenizer.encode(" one ") + separator + tokenizer.encode("two\n") + separator
    assert tokenizer.decode(ids) == " one two\n"


def test_any_ids_decode(tokenizer: Tokenizer) -> None:
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    def law(ids: list[int]) -> None:
        tokenizer.decode(ids).encode()

    law()


@pytest.mark.parametrize("token", [-1, 3_000, 2**40])
def test_an_id_outside_the_vocabulary_is_named(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(DataError, match=rf"token id {token} at position 2 .* 0 to 2999"):
        tokenizer.decode([5, 6, token])


def test_loading_gives_back_what_was_saved(tokenizer: Tokenizer, saved: Path) -> None:
    loaded = Tokenizer.load(saved)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.pieces() == tokenizer.pieces()
    assert loaded.separator_id == tokenizer.separator_id


def test_saving_again_writes_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    Tokenizer.load(saved).save(tmp_path / "made" / "here", model_max_length=512)
    written = {path.name: path.read_bytes() for path in (tmp_path / "made" / "here").iterdir()}
    assert written == {path.name: path.read_bytes() for path in saved.iterdir()}
    assert sorted(written) == ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]


def test_only_the_model_is_read(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((saved / "tokenizer.model").read_bytes())
    assert Tokenizer.load(tmp_path).encode("text") == Tokenizer.load(saved).encode("text")


def test_a_tokenizer_travels_to_other_processes(tokenizer: Tokenizer) -> None:
    travelled = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert travelled.fingerprint == tokenizer.fingerprint


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.model does not exist") as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint
    assert "llmtrain tokenizer train" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\n", b"not a model", b"\x00" * 1_000])
def test_what_is_not_a_model_is_named(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.model cannot be used"):
        Tokenizer.load(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_an_enormous_model_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(DataError, match=r"17 MiB, and the limit is 16 MiB"):
        Tokenizer.load(tmp_path)


def test_a_directory_in_place_of_the_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(DataError, match=r"tokenizer\.model cannot be read"):
        Tokenizer.load(tmp_path)


def test_a_damaged_model_works_or_is_refused(saved: Path) -> None:
    model = (saved / "tokenizer.model").read_bytes()

    @settings(derandomize=True)
    @given(st.integers(0, len(model) - 1), st.integers(0, 255), st.integers(0, len(model)))
    def law(place: int, value: int, end: int) -> None:
        damaged = (model[:place] + bytes([value]) + model[place + 1 :])[:end]
        try:
            tokenizer = Tokenizer.of_model(damaged)
        except DataError:
            return
        assert tokenizer.decode(tokenizer.encode("  some text\r\n")) == "  some text\r\n"

    law()


LOSSLESS = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "required_chars": "▁",
    "bos_piece": "<|endoftext|>",
    "eos_id": -1,
}


def model_made_with(options: dict[str, object]) -> bytes:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["some words of text " * 100]),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=3,
        **options,
    )
    return model.getvalue()


def test_a_model_made_elsewhere_with_lossless_settings_is_taken() -> None:
    assert Tokenizer.of_model(model_made_with(LOSSLESS)).encode(" words")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"eos_piece": "</s>", "eos_id": 2}, "control tokens"),
        ({"bos_piece": "<s>"}, "control tokens"),
        ({"unk_piece": "<other>"}, "unknown token"),
        ({"byte_fallback": False}, "in bytes"),
        ({"normalization_rule_name": "nmt_nfkc"}, "keep text exactly"),
        ({"add_dummy_prefix": True}, "keep text exactly"),
        ({"remove_extra_whitespaces": True}, "keep text exactly"),
        ({"split_by_whitespace": False}, "into the next word"),
    ],
)
def test_a_model_made_with_other_settings_is_refused(
    options: dict[str, object], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        Tokenizer.of_model(model_made_with(LOSSLESS | options))
