from __future__ import annotations

import json

import pytest

from llmtrain.export.pre_tokenizer import PRE_TOKENIZERS, find_pre_tokenizer
from tests.export.conftest import ByteLevel


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "gpt-4o", "dbrx"])
def test_a_pattern_is_found_by_its_ids(name: str, byte_level: ByteLevel) -> None:
    tokenizer = byte_level(PRE_TOKENIZERS[name].patterns[0])

    assert find_pre_tokenizer(tokenizer.model) == (name, "")


def test_text_that_is_split_as_llama_cpp_cannot_is_named(byte_level: ByteLevel) -> None:
    name, text = find_pre_tokenizer(byte_level(r"[a-e]+|[^a-e]+").model)

    assert name is None
    assert text


def test_text_that_is_normalized_is_not_compared(byte_level: ByteLevel) -> None:
    document = json.loads(byte_level(PRE_TOKENIZERS["qwen2"].patterns[0]).model)
    document["normalizer"] = {"type": "NFC"}

    assert find_pre_tokenizer(json.dumps(document).encode()) == ("qwen2", "")
