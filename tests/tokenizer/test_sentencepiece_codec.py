"""The library's own tokenizer: where its pieces begin."""

from __future__ import annotations

import sys

import pytest

from llmtrain.tokenizer.sentencepiece_codec import SentencePieceCodec
from tests.data.fixed import TOKENIZER

TEXTS = ["", "def f(x):\n    return x", "aé日 b\t🙂y  z", "日本語🙂🙂"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_begin_where_they_are_in_the_text_without_other_packages(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "google.protobuf", None)  # an optional one of the library
    codec = SentencePieceCodec((TOKENIZER / "tokenizer.model").read_bytes())
    ids, starts = codec.encode_with_starts(text)
    assert ids == codec.encode(text)
    assert starts == sorted(starts)
    spelled = [len(b"".join(map(codec.spell, ids[:n]))) for n in range(len(ids))]
    whole = [n for n, size in enumerate(spelled) if len(text[: starts[n]].encode()) == size]
    assert bool(whole) == bool(text)
    inside = set(range(len(ids))) - set(whole)  # bytes of one character begin where it begins
    assert all(codec.spell(ids[n]) and starts[n] == starts[n - 1] for n in inside)
