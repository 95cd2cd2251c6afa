"""Statistics of a tokenizer on samples of text, compared with other tokenizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmtrain.tokenizer.piece import Piece
from llmtrain.tokenizer.tokenizer import Tokenizer

_PIECES_SHOWN = 10
# Where vocabularies differ most: digits, indentation, line ends, spaces between words.
_SPELT = ("1234567", "3.14", "    return x", "\t\tif a:\r\n\n", "two  spaces")


@dataclass(frozen=True, slots=True)
class Fit:
    """The compression of a text; `name` is that of the text or of the tokenizer."""

    name: str
    bytes: int
    tokens: int
    bytes_per_token: float | None  # None if there are no tokens


@dataclass(frozen=True, slots=True)
class UsedPiece:
    """A piece and how often it occurs in the samples."""

    piece: str
    times: int


@dataclass(frozen=True, slots=True)
class Spelling:
    """A text and its pieces, in the model's spelling."""

    text: str
    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenizerReport:
    """A vocabulary and how well it fits the samples; the rates of an empty sample are None."""

    kind: str
    vocab_size: int
    separator: str
    separator_id: int
    fingerprint: str
    longest_pieces: tuple[str, ...]  # longest first, in the model's spelling
    spellings: tuple[Spelling, ...]
    sample_bytes: int
    sample_tokens: int
    bytes_per_token: float | None
    byte_fallback_rate: float | None  # share of tokens that are byte pieces
    unused_text_pieces: int  # text pieces that never occur in the samples
    unused_share: float | None  # share of the text pieces
    rarest_pieces: tuple[UsedPiece, ...]  # of those that occur, rarest first
    sources: tuple[Fit, ...]
    beside: tuple[Fit, ...]  # other tokenizers, on all samples


def inspect_tokenizer(
    tokenizer: Tokenizer,
    samples: Mapping[str, Iterable[str]],
    beside: Mapping[str, Tokenizer] | None = None,
) -> TokenizerReport:
    """Return the report on `tokenizer`, with rates measured on all samples together.

    Samples are read once, one text at a time. `beside` maps names to tokenizers to compare with.
    """
    others = beside or {}
    used: Counter[int] = Counter()
    other_tokens: Counter[str] = Counter()
    sources = []
    for name, texts in samples.items():
        text_bytes, tokens_before = 0, used.total()
        for text in texts:
            text_bytes += len(text.encode())
            used.update(tokenizer.encode(text))
            other_tokens.update({other: len(others[other].encode(text)) for other in others})
        sources.append(_fit(name, text_bytes, used.total() - tokens_before))
    total = _fit("", sum(source.bytes for source in sources), used.total())
    pieces = tokenizer.pieces()
    byte_tokens = sum(times for token, times in used.items() if pieces[token].kind == "byte")
    text_ids = [token for token, piece in enumerate(pieces) if piece.kind == "text"]
    unused = sum(token not in used for token in text_ids)
    return TokenizerReport(
        kind=tokenizer.kind.name,
        vocab_size=tokenizer.vocab_size,
        separator=pieces[tokenizer.eos_id].text,
        separator_id=tokenizer.eos_id,
        fingerprint=tokenizer.fingerprint,
        longest_pieces=_longest(pieces, text_ids),
        spellings=tuple(
            Spelling(text, tuple(map(tokenizer.piece, tokenizer.encode(text)))) for text in _SPELT
        ),
        sample_bytes=total.bytes,
        sample_tokens=total.tokens,
        bytes_per_token=total.bytes_per_token,
        byte_fallback_rate=byte_tokens / total.tokens if total.tokens else None,
        unused_text_pieces=unused,
        unused_share=unused / len(text_ids) if total.tokens and text_ids else None,
        rarest_pieces=_rarest(pieces, text_ids, used),
        sources=tuple(sources),
        beside=tuple(_fit(name, total.bytes, other_tokens[name]) for name in others),
    )


def _fit(name: str, text_bytes: int, tokens: int) -> Fit:
    return Fit(name, text_bytes, tokens, text_bytes / tokens if tokens else None)


def _longest(pieces: Sequence[Piece], text_ids: Sequence[int]) -> tuple[str, ...]:
    longest = sorted(text_ids, key=lambda token: (-len(pieces[token].text), token))
    return tuple(pieces[token].text for token in longest[:_PIECES_SHOWN])


def _rarest(
    pieces: Sequence[Piece], text_ids: Sequence[int], used: Mapping[int, int]
) -> tuple[UsedPiece, ...]:
    needed = sorted((used[token], token) for token in text_ids if token in used)
    return tuple(UsedPiece(pieces[token].text, times) for times, token in needed[:_PIECES_SHOWN])
