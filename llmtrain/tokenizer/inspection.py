"""What a tokenizer does to a sample of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from llmtrain.tokenizer.piece import SEPARATOR
from llmtrain.tokenizer.tokenizer import Tokenizer

_LONGEST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class TokenizerReport:
    """A vocabulary, and how well it fits a sample. Rates of an empty sample are None."""

    vocab_size: int
    separator: str
    separator_id: int
    fingerprint: str
    longest_pieces: tuple[str, ...]  # longest first, as the model spells them
    sample_bytes: int
    sample_tokens: int
    bytes_per_token: float | None
    byte_fallback_rate: float | None  # share of the tokens that are single bytes
    unused_text_pieces: int  # that the sample never needed


def inspect_tokenizer(tokenizer: Tokenizer, sample_texts: Iterable[str]) -> TokenizerReport:
    """What there is to know of `tokenizer`, with rates as measured on the sample."""
    used: Counter[int] = Counter()
    sample_bytes = 0
    for text in sample_texts:
        sample_bytes += len(text.encode())
        used.update(tokenizer.encode(text))
    pieces = tokenizer.pieces()
    text_ids = [token for token, piece in enumerate(pieces) if piece.kind == "text"]
    byte_tokens = sum(n for token, n in used.items() if pieces[token].kind == "byte")
    longest = sorted(text_ids, key=lambda token: (-len(pieces[token].text), token))
    tokens = used.total()
    return TokenizerReport(
        vocab_size=tokenizer.vocab_size,
        separator=SEPARATOR,
        separator_id=tokenizer.separator_id,
        fingerprint=tokenizer.fingerprint,
        longest_pieces=tuple(pieces[token].text for token in longest[:_LONGEST_SHOWN]),
        sample_bytes=sample_bytes,
        sample_tokens=tokens,
        bytes_per_token=sample_bytes / tokens if tokens else None,
        byte_fallback_rate=byte_tokens / tokens if tokens else None,
        unused_text_pieces=sum(token not in used for token in text_ids),
    )
