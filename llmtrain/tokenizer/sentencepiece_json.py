"""Conversion of imported sentencepiece models to tokenizer.json, with a check of the ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from llmtrain.tokenizer.escape import escape
from llmtrain.tokenizer.huggingface import bpe_json, unigram_json
from llmtrain.tokenizer.huggingface_codec import HuggingFaceCodec
from llmtrain.tokenizer.piece import Piece
from llmtrain.tokenizer.probes import PROBES
from llmtrain.tokenizer.sentencepiece_codec import SentencePieceCodec
from llmtrain.tokenizer.structure import read_settings

_PART_PIECES = 64  # of the vocabulary, in one probe


@lru_cache(maxsize=2)  # the result is written with every checkpoint
def sentencepiece_json(model: bytes, escaped: bool) -> tuple[str, str | None]:
    """Return tokenizer.json and the first probe whose ids differ from the model's; None if none.

    The probes are the texts of `PROBES`, the names of control tokens, and every text piece of the
    vocabulary.
    """
    codec = SentencePieceCodec(model)
    settings = read_settings(model)
    pieces = codec.pieces()
    to_json = unigram_json if settings.is_unigram else bpe_json
    text = to_json(pieces, settings, escaped=escaped)
    theirs = HuggingFaceCodec(text.encode())  # its normalizer escapes text itself
    differing = (
        probe
        for probe in _probes(pieces)
        if codec.encode(escape(probe) if escaped else probe) != theirs.encode(probe)
    )
    return text, next(differing, None)


def _probes(pieces: Sequence[Piece]) -> Iterator[str]:
    yield from ("", *PROBES)
    words = [piece.text.replace("▁", " ") for piece in pieces if piece.kind == "text"]
    names = [piece.text for piece in pieces if piece.kind not in ("text", "byte")]
    for name in names:
        yield from (name, f"a{name} b", f" {name}{name}")
    for start in range(0, len(words), _PART_PIECES):
        part = words[start : start + _PART_PIECES]
        yield "".join(part)
        yield "\n".join(part)
