from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.errors import UsageError
from llmtrain.export.gguf_vocabulary import vocabulary_of
from llmtrain.export.pre_tokenizer import PRE_TOKENIZERS
from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.tokenizer.importing import ImportOptions, import_tokenizer
from tests.export.conftest import ByteLevel


def test_rows_without_a_piece_are_unused(own_tokenizer: Tokenizer) -> None:
    vocabulary = vocabulary_of(own_tokenizer, own_tokenizer.vocab_size + 2)

    assert vocabulary.model == "llama"
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == own_tokenizer.vocab_size + 2
    assert vocabulary.types[-2:] == [5, 5]
    assert vocabulary.types[own_tokenizer.separator_id] == 3
    assert vocabulary.types.count(6) == 256
    assert vocabulary.differs("a ▁ b")
    assert not vocabulary.differs("a b")


def test_unigram_is_refused_with_the_reason(text: str) -> None:
    tokenizer = train_tokenizer([text], vocab_size=500, kind="unigram").tokenizer

    with pytest.raises(UsageError, match="no byte fall-back"):
        vocabulary_of(tokenizer, 500)


def test_text_that_is_normalized_is_known_to_differ(byte_level: ByteLevel, tmp_path: Path) -> None:
    document = json.loads(byte_level(PRE_TOKENIZERS["qwen2"].patterns[0]).model)
    document["normalizer"] = {"type": "NFC"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    tokenizer = import_tokenizer(path, ImportOptions(allow_lossy=True)).tokenizer

    vocabulary = vocabulary_of(tokenizer, tokenizer.vocab_size)

    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "qwen2")
    assert vocabulary.differs("e\u0301")
    assert len(vocabulary.known_differences) == 1


def test_a_split_that_llama_cpp_does_not_know_is_refused(byte_level: ByteLevel) -> None:
    tokenizer = byte_level(r"[a-e]+|[^a-e]+")

    with pytest.raises(UsageError, match="in no way that gives these ids: '"):
        vocabulary_of(tokenizer, tokenizer.vocab_size)
