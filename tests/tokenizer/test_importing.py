"""Tokenizers made elsewhere keep their ids, and what changes text is told by example."""

from __future__ import annotations

import base64
import io
import json
import shlex
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.errors import DataError, LlmtrainError, UsageError
from llmtrain.tokenizer import (
    ImportOptions,
    Tokenizer,
    import_tokenizer,
    open_tokenizer,
    streams,
)
from llmtrain.tokenizer.byte_unicode import bytes_of
from llmtrain.tokenizer.escape import SPACE_MARK
from llmtrain.tokenizer.sentencepiece_codec import SentencePieceCodec
from llmtrain.tokenizer.tiktoken_ranks import PATTERNS

any_text = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cn"])
    | st.sampled_from("\r\n\t  aZé0'\u2019s<|>_\u0301\u0130\u017f")
)
TIKTOKEN_PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def test_chance_has_no_part_in_ids(bytes_json: str, tmp_path: Path) -> None:
    document = json.loads(bytes_json)
    document["model"]["dropout"] = 0.3
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="drops merges by chance"):
        import_tokenizer(path, ImportOptions())


@pytest.fixture(scope="session")
def bytes_json(documents: list[str]) -> str:
    """A tokenizer.json of byte pairs as many models have it, without any special token."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    made.train_from_iterator(documents[:200], trainer)
    return str(made.to_str())


@pytest.fixture(scope="session")
def ranks(bytes_json: str) -> dict[bytes, int]:
    vocabulary = json.loads(bytes_json)["model"]["vocab"]
    return {bytes_of(text): rank for text, rank in vocabulary.items()}


@pytest.fixture(scope="session")
def ranks_file(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "small.tiktoken"
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    path.write_bytes(b"".join(lines))
    return path


def require_same(
    ours: Tokenizer, theirs: Callable[[str], list[int]], documents: list[str], texts: list[str]
) -> None:
    for text in (*documents, *texts):
        ids = ours.encode(text)
        assert ids == theirs(text)
        assert ours.decode(ids) == text


def require_saved(tokenizer: Tokenizer, directory: Path) -> None:
    """It is the same after it was saved, as a checkpoint saves it."""
    tokenizer.save(directory, model_max_length=64)
    loaded = Tokenizer.load(directory)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.separator_id == tokenizer.separator_id
    assert loaded.encode(" a b▁\r\n") == tokenizer.encode(" a b▁\r\n")
    assert open_tokenizer(directory).fingerprint == tokenizer.fingerprint


def test_a_tokenizer_json_keeps_its_ids(
    bytes_json: str, compared: list[str], adversarial: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(bytes_json)
    imported = import_tokenizer(tmp_path, ImportOptions())
    theirs = tokenizers.Tokenizer.from_str(bytes_json)
    require_same(imported.tokenizer, lambda text: theirs.encode(text).ids, compared, adversarial)
    assert imported.added_separator
    assert imported.tokenizer.separator_id == theirs.get_vocab_size()
    assert imported.tokenizer.vocab_size == theirs.get_vocab_size() + 1
    assert imported.warnings == ()
    require_saved(imported.tokenizer, tmp_path / "saved")
    assert open_tokenizer(tmp_path / "tokenizer.json").fingerprint == imported.tokenizer.fingerprint


@pytest.mark.parametrize("name", TIKTOKEN_PATTERNS)
def test_ranks_keep_their_ids(
    name: str,
    ranks: dict[bytes, int],
    ranks_file: Path,
    compared: list[str],
    adversarial: list[str],
    tmp_path: Path,
) -> None:
    imported = import_tokenizer(ranks_file, ImportOptions(pattern=name))
    ours = imported.tokenizer
    theirs = tiktoken.Encoding(
        name, pat_str=TIKTOKEN_PATTERNS[name], mergeable_ranks=ranks, special_tokens={}
    )
    require_same(ours, theirs.encode_ordinary, compared, adversarial)

    @given(any_text)
    def law(text: str) -> None:
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode(text)) == text

    law()
    assert ours.separator_id == len(ranks)
    require_saved(ours, tmp_path / "saved")


def test_letters_that_fold_to_a_contraction_are_one(tmp_path: Path) -> None:
    ranks = {bytes([n]): n for n in range(256)} | {b"\xc5\xbf": 256, b"\xc5\xbfa": 257}
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (tmp_path / "x.tiktoken").write_bytes(b"".join(lines))
    pattern = TIKTOKEN_PATTERNS["cl100k_base"]
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    ours = open_with(tmp_path / "x.tiktoken", pattern="cl100k_base")
    assert 257 in ours.encode("\u017fa")
    assert 257 not in ours.encode("it'\u017fa")
    assert ours.encode("it'\u017fa") == theirs.encode_ordinary("it'\u017fa")


def test_ranks_with_a_gap_keep_their_ids(ranks_file: Path, tmp_path: Path) -> None:
    lines = ranks_file.read_bytes().splitlines()
    gap = [line for line in lines if not line.endswith(b" 1500")]
    (tmp_path / "gap.tiktoken").write_bytes(b"\n".join(gap))
    ours = open_with(tmp_path / "gap.tiktoken", pattern="gpt2")
    assert ours.separator_id == ours.vocab_size - 1 == len(lines)
    text = "<|no token 1500|> ordinary"
    assert 1500 not in ours.encode(text)
    assert ours.decode(ours.encode(text)) == text


def open_with(path: Path, **options: object) -> Tokenizer:
    return import_tokenizer(path, ImportOptions(**options)).tokenizer  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"YQ== 0\n!!!! 1\n", "line 2"),
        (b"YQ== 0\nYg== one\n", "line 2"),
        (b"YQ== 0\nYQ== 1\n", "line 2"),
        (b"YQ== 0\nYg== 0\n", "one rank"),
        (b"YQ== 0\n", "byte 0x00 has no rank"),
        (b"", "byte 0x00 has no rank"),
    ],
)
def test_what_are_no_ranks_is_told(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.tiktoken cannot be used: .*{reason}"):
        open_with(tmp_path / "x.tiktoken", pattern="gpt2")


@pytest.mark.parametrize("pattern", ["", "gpt5", r"\s++$|\s", r"\p{N}{1,3}+|\s", "^a"])
def test_a_pattern_that_means_something_else_is_refused(pattern: str, ranks_file: Path) -> None:
    with pytest.raises(UsageError):
        open_with(ranks_file, pattern=pattern)


def test_a_pattern_of_ones_own_splits(ranks_file: Path) -> None:
    assert open_with(ranks_file, pattern=r"[^$\n]+|\p{L}+|[$]|\n").encode("a$b")
    with pytest.raises(DataError, match="do not say how") as caught:
        open_with(ranks_file)
    assert "--pattern" in str(caught.value.hint)
    assert set(PATTERNS) == set(TIKTOKEN_PATTERNS)


def sentencepiece_model(documents: list[str], **options: object) -> bytes:
    model = io.BytesIO()
    settings: dict[str, object] = {
        "model_type": "bpe",
        "vocab_size": 1_500,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "required_chars": SPACE_MARK,
    }
    SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in documents[:60] for line in text.splitlines()),
        model_writer=model,
        minloglevel=3,
        hard_vocab_limit=False,
        **settings | options,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({}, False),  # as Llama 2's: a space before each text, <s> and </s>
        ({"add_dummy_prefix": False, "model_type": "unigram"}, False),
        ({"split_by_whitespace": False, "add_dummy_prefix": False}, False),
        ({"model_type": "unigram"}, False),
        ({"control_symbols": ["[INST]", "<pad>"]}, False),
        (
            {
                "bos_id": -1,
                "eos_id": -1,
                "user_defined_symbols": ["<x>"],
                "add_dummy_prefix": False,
            },
            True,
        ),
    ],
)
def test_a_sentencepiece_model_keeps_its_ids(
    options: dict[str, object],
    added: bool,
    documents: list[str],
    compared: list[str],
    adversarial: list[str],
    tmp_path: Path,
) -> None:
    model = sentencepiece_model(documents, **options)
    path = tmp_path / "theirs.model"
    path.write_bytes(model)
    imported = import_tokenizer(path, ImportOptions())
    ours, theirs = imported.tokenizer, SentencePieceProcessor(model_proto=model)
    texts = [text for text in adversarial if SPACE_MARK not in text and "\U000f2581" not in text]
    require_same(ours, theirs.encode, compared, texts)
    assert [ours.decode(ours.encode(text)) for text in adversarial] == adversarial
    assert imported.added_separator is added
    assert ours.separator_id == (theirs.get_piece_size() if added else theirs.eos_id())
    assert ours.separator_id not in ours.encode("</s><|endoftext|>")
    (warning,) = imported.warnings
    assert "U+2581" in warning
    require_saved(ours, tmp_path / "saved")
    foreign = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert isinstance(foreign, PreTrainedTokenizerFast)  # without protobuf
    for text in (*compared, *adversarial, "</s>", "a<unk> b", "<x>y <x>", "[INST] a [/INST]"):
        ids = foreign(text, verbose=False)["input_ids"]
        if options.get("model_type") == "unigram":  # of two best segmentations each takes its own
            assert sorted(ids) == sorted(ours.encode(text))
        else:
            assert ids == ours.encode(text)
        assert foreign.decode(ours.encode(text)) == text
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert config["add_prefix_space"] is options.get("add_dummy_prefix", True)


def test_a_model_whose_ids_no_json_gives_is_refused(documents: list[str], tmp_path: Path) -> None:
    path = tmp_path / "theirs.model"
    path.write_bytes(sentencepiece_model(documents, user_defined_symbols=["<x>"]))
    with pytest.raises(DataError, match=r"no tokenizer\.json gives the ids") as caught:
        open_tokenizer(path)
    assert "<x>" in caught.value.message


@pytest.mark.parametrize("options", [{"remove_extra_whitespaces": True}, {"byte_fallback": False}])
def test_a_lossy_model_has_the_same_ids_too(
    options: dict[str, object], documents: list[str], compared: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "lossy.model"
    path.write_bytes(sentencepiece_model(documents, **options))
    ours = import_tokenizer(path, ImportOptions(allow_lossy=True)).tokenizer
    ours.save(tmp_path / "saved")
    foreign = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [foreign(text)["input_ids"] for text in compared] == [*map(ours.encode, compared)]


def test_an_own_model_is_what_it_was(saved: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    imported = import_tokenizer(saved / "tokenizer.model", ImportOptions())
    assert imported.tokenizer.fingerprint == tokenizer.fingerprint
    assert imported.warnings == ()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, "table of replacements"),
        ({"byte_fallback": False}, "keep text exactly"),
        ({"remove_extra_whitespaces": True}, "keep text exactly"),
    ],
)
def test_a_lossy_model_is_refused(
    options: dict[str, object], reason: str, documents: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "lossy.model"
    path.write_bytes(sentencepiece_model(documents, **options))
    with pytest.raises(DataError, match=reason):
        open_tokenizer(path)


def test_a_lossy_one_is_told_by_example(bytes_json: str, tmp_path: Path) -> None:
    lossy = tokenizers.Tokenizer.from_str(bytes_json)
    lossy.normalizer = normalizers.NFC()
    lossy.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="comes back as") as caught:
        open_tokenizer(tmp_path / "tokenizer.json")
    assert "--allow-lossy" in str(caught.value.hint)
    imported = import_tokenizer(tmp_path, ImportOptions(allow_lossy=True))
    (warning,) = imported.warnings
    assert "e\\u0301" in warning.encode("unicode_escape").decode()
    require_saved(imported.tokenizer, tmp_path / "saved")


def with_tokens(bytes_json: str, *names: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(bytes_json)
    made.add_special_tokens(list(names))
    return made


@pytest.mark.parametrize(
    ("config", "wished", "expected"),
    [
        (None, None, "</s>"),
        ({"eos_token": "<end>"}, None, "<end>"),
        ({"eos_token": {"content": "<end>"}}, None, "<end>"),
        ({"eos_token": "<nowhere>"}, None, "</s>"),
        ({"eos_token": "<end>"}, "</s>", "</s>"),
        (None, "<new>", "<new>"),
    ],
)
def test_the_separator_is_found_or_made(
    bytes_json: str,
    config: dict[str, object] | None,
    wished: str | None,
    expected: str,
    tmp_path: Path,
) -> None:
    with_tokens(bytes_json, "<end>", "</s>").save(str(tmp_path / "tokenizer.json"))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = open_with(tmp_path, separator=wished)
    assert ours.piece(ours.separator_id) == expected
    assert ours.separator_id not in ours.encode(expected)
    assert ours.decode([ours.separator_id, *ours.encode(" a"), ours.separator_id]) == " a"
    ours.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text()) | {
        "bos_token": expected,
        "eos_token": expected,
        "split_special_tokens": True,
    } == json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"model": {"type": "WordPiece", "vocab": {}}}',
        b"{" * 10_000,
        b'{"model": {"type": "BPE", "continuing_subword_prefix": "##", "vocab": {}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 2147483648}, "merges": []}}',
        json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}).encode(),
    ],
)
def test_what_is_no_tokenizer_json_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        open_tokenizer(path)


def test_one_without_a_decoder_can_be_looked_at(bytes_json: str, tmp_path: Path) -> None:
    document = json.loads(bytes_json) | {"decoder": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="comes back as"):
        open_tokenizer(tmp_path)
    assert open_with(tmp_path, allow_lossy=True).pieces()


@pytest.mark.parametrize("name", ["nowhere.json", "note.txt", "empty", "no.model"])
def test_what_is_no_tokenizer_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a note")
    (tmp_path / "no.model").write_text("a note")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LlmtrainError, match=name) as caught:
        import_tokenizer(tmp_path / name, ImportOptions())
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "said",
    [
        "{}",
        '{"format_version": 2, "name": "huggingface", "separator_id": 1, "escaped": false}',
        '{"format_version": 1, "name": "own", "separator_id": 1, "escaped": false}',
        '{"format_version": 1, "name": "huggingface", "separator_id": 1e9, "escaped": false}',
        '{"format_version": 1, "name": "huggingface", "separator_id": 999999, "escaped": false}',
        "junk",
    ],
)
def test_a_damaged_directory_is_told(said: str, bytes_json: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(bytes_json)
    (tmp_path / "tokenizer_kind.json").write_text(said)
    with pytest.raises(DataError, match="tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", TIKTOKEN_PATTERNS)
def test_parts_of_a_stream_have_the_ids_of_the_whole(
    name: str, ranks_file: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_PART_CHARACTERS", 40)
    monkeypatch.setattr(streams, "_PART_IDS", 20)
    tokenizer = open_with(ranks_file, pattern=name)
    text = "".join(documents[:5]) + "  naïve éa 12  \n\n \U0001f469\u200d\U0001f467 中文" * 9
    whole = tokenizer.encode(text)
    blocks = [text[start : start + 23] for start in range(0, len(text), 23)]
    parts = list(streams.encoded_parts(tokenizer, blocks))
    assert len(parts) > 50
    assert [token for part in parts for token in part] == whole
    batches = [whole[start : start + 7] for start in range(0, len(whole), 7)]
    texts = list(streams.decoded_parts(tokenizer, batches))
    assert len(texts) > 50
    assert "".join(texts) == text


def test_one_that_begins_each_text_with_a_space_gets_it_whole(
    documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_PART_CHARACTERS", 40)
    (tmp_path / "x.model").write_bytes(sentencepiece_model(documents))
    tokenizer = open_tokenizer(tmp_path / "x.model")
    text = documents[0][:500]
    (ids,) = streams.encoded_parts(tokenizer, [text[:100], text[100:]])
    assert ids == tokenizer.encode(text)
    assert list(streams.decoded_parts(tokenizer, [ids[:9], ids[9:]])) == [text]


@pytest.mark.parametrize("name", ["tokenizer.model.v3", "spm.MODEL", "sentencepiece.bpe.model"])
def test_a_sentencepiece_model_may_have_any_usual_name(
    name: str, documents: list[str], tmp_path: Path
) -> None:
    model = sentencepiece_model(documents)
    (tmp_path / name).write_bytes(model)
    named = open_tokenizer(tmp_path / name)
    assert open_tokenizer(tmp_path).fingerprint == named.fingerprint
    assert named.encode("a b") == SentencePieceProcessor(model_proto=model).encode("a b")


def test_a_directory_with_several_models_is_not_guessed(
    documents: list[str], tmp_path: Path
) -> None:
    directory = tmp_path / "my models"
    directory.mkdir()
    for name in ("tokenizer.model.v1", "tokenizer.model.v3"):
        (directory / name).write_bytes(sentencepiece_model(documents))
    with pytest.raises(DataError, match=r"v1.*v3") as caught:
        open_tokenizer(directory)
    assert str(directory / "tokenizer.model.v3") in shlex.split(str(caught.value.hint))


def test_vocab_and_merges_keep_their_ids(
    bytes_json: str, documents: list[str], adversarial: list[str], tmp_path: Path
) -> None:
    """As GPT-2 has them, also with the separator in tokenizer_config.json."""
    theirs = with_tokens(bytes_json, "<|endoftext|>")
    theirs.model.save(str(tmp_path))
    theirs.encode_special_tokens = True
    vocabulary = theirs.get_vocab()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    gpt2 = tokenizers.ByteLevelBPETokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    texts = [text for text in adversarial if "<|endoftext|>" not in text]
    for path in (tmp_path, tmp_path / "vocab.json", tmp_path / "merges.txt"):
        imported = import_tokenizer(path, ImportOptions())
        ours = imported.tokenizer
        require_same(ours, lambda text: gpt2.encode(text).ids, documents[:50], texts)
        assert ours.separator_id == vocabulary["<|endoftext|>"]
        assert not imported.added_separator
        assert ours.separator_id not in ours.encode("<|endoftext|>")


@pytest.mark.parametrize("merges", ["a b c\n", "a\n", "zz yy\n", "\xff"])
def test_damaged_merges_are_named(merges: str, bytes_json: str, tmp_path: Path) -> None:
    tokenizers.Tokenizer.from_str(bytes_json).model.save(str(tmp_path))
    (tmp_path / "merges.txt").write_text(merges, "latin-1")
    with pytest.raises(DataError, match=r"merges\.txt"):
        open_tokenizer(tmp_path)


def test_half_of_a_pair_of_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"merges\.txt"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("normalizer", "form"),
    [(normalizers.NFC(), "NFC"), (normalizers.NFKC(), "NFKC"), (normalizers.NFD(), "NFD")],
)
def test_a_normalization_is_named_with_its_code_points(
    normalizer: normalizers.Normalizer, form: str, bytes_json: str, tmp_path: Path
) -> None:
    changed = tokenizers.Tokenizer.from_str(bytes_json)
    changed.normalizer = normalizers.Sequence([normalizer])
    changed.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=rf"\b{form}\b.*U\+[0-9A-F]{{4}}.* U\+[0-9A-F]{{4}}"):
        open_tokenizer(tmp_path)


def test_a_piece_that_is_not_used_stays_unused(documents: list[str], tmp_path: Path) -> None:
    model = sentencepiece_model(documents)
    named = {piece.text for piece in SentencePieceCodec(model).pieces()}
    joined = next(
        a + b for a in ("re", "in", "th") for b in ("x", "qu", "re") if a + b not in named
    )
    text = joined.encode()
    score = b"\x15" + struct.pack("<f", -1e5)
    unused = b"\x0a" + bytes([len(text)]) + text + score + b"\x18\x05"  # 5: its type
    path = tmp_path / "theirs.model"
    path.write_bytes(model + b"\x0a" + bytes([len(unused)]) + unused)
    ours = open_tokenizer(path)
    assert ours.vocab_size - 1 not in ours.encode(f"{joined} a{joined}")
    require_saved(ours, tmp_path / "saved")
    foreign = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for probe in (joined, f"a{joined} {joined}x"):
        assert foreign(probe)["input_ids"] == ours.encode(probe)


@pytest.mark.parametrize("around", ["template", "truncation", "padding"])
def test_what_surrounds_a_text_is_left_out_and_told(
    around: str, bytes_json: str, tmp_path: Path
) -> None:
    """A model is trained on the ids of texts alone, so that is what other programs must read."""
    theirs = with_tokens(bytes_json, "<s>", "</s>")
    expected = theirs.encode("some words of text").ids
    if around == "template":
        theirs.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            special_tokens=[(name, theirs.token_to_id(name)) for name in ("<s>", "</s>")],
        )
    elif around == "truncation":
        theirs.enable_truncation(2)
    else:
        theirs.enable_padding(length=64)
    theirs.save(str(tmp_path / "tokenizer.json"))

    imported = import_tokenizer(tmp_path, ImportOptions())
    imported.tokenizer.save(tmp_path / "saved")

    read = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert read.encode("some words of text").ids == expected
    assert imported.tokenizer.encode("some words of text") == expected
    assert any("left out" in warning for warning in imported.warnings)


def test_two_tokens_with_one_id_are_refused(bytes_json: str, tmp_path: Path) -> None:
    document = json.loads(bytes_json)
    first, second, *_ = document["model"]["vocab"]
    document["model"]["vocab"][first] = document["model"]["vocab"][second]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(DataError, match="have the same id"):
        open_tokenizer(tmp_path)
