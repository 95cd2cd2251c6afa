"""Tokenizers: trained, imported, used, inspected."""

from __future__ import annotations

from typing import Literal

from llmtrain.documents.base import Document, Number, Part, Text, key, optional
from llmtrain.tokenizer.codec import KindName


class TokenizerTrain(Document):
    """`llmtrain tokenizer train`."""

    out: Text = key("the directory")
    kind: Literal["bpe", "unigram"] = key("of model")
    vocab_size: int = key("pieces learned")
    requested_vocab_size: int = key("pieces asked for")
    vocab_size_reason: Text | None = key("why so many; null unless `--vocab-size auto`")
    reserved: int = key("of those, control pieces that are reserved for later use")
    documents: int = key("it was trained on")
    bytes_seen: int = key("of the text that the sample was drawn from")
    bytes_used: int = key("of the text it was trained on")
    skipped: dict[Text, int] = key("files that were not read, by reason")
    sha256: Text = key("of the tokenizer")


class TokenizerImport(Document):
    """`llmtrain tokenizer import`."""

    out: Text = key("the directory")
    source: Text = key("the file")
    kind: KindName = key("own: as `tokenizer train` makes them; or the library that reads it")
    vocab_size: int = key("pieces")
    separator: Text = key("the piece between documents")
    separator_id: int = key("its id")
    added_separator: bool = key("whether it is new")
    warnings: list[Text] = key("text that it changes, or encodes differently than the original")
    sha256: Text = key("of the tokenizer")


class TokenizerEncode(Document):
    """`llmtrain tokenizer encode`."""

    ids: list[int] = optional("token ids, in the order of the text; missing with `--out`")
    out: Text = optional("the file of ids; missing without `--out`")
    tokens: int = key("how many they are")


class TokenizerDecode(Document):
    """`llmtrain tokenizer decode`."""

    text: Text = key("the exact text")


class Fit(Part):
    """The token counts and rates of a text."""

    name: Text = key("of the text, or of the tokenizer")
    bytes: int = key("of the text")
    tokens: int = key("that it becomes")
    bytes_per_token: Number = key("null: there was no text")


class UsedPiece(Part):
    """A piece, and its use."""

    piece: Text = key("as the model spells it")
    times: int = key("how often the text needed it")


class Spelling(Part):
    """A text in pieces."""

    text: Text = key("with digits, indentation or spaces")
    pieces: list[Text] = key("as the model spells them")


class TokenizerInspect(Document):
    """`llmtrain tokenizer inspect`. Rates are null without `--data`."""

    kind: KindName = key("own: as `tokenizer train` makes them; or the library that reads it")
    vocab_size: int = key("pieces")
    separator: Text = key("the piece between documents")
    separator_id: int = key("its id")
    fingerprint: Text = key("sha256 of the tokenizer")
    longest_pieces: list[Text] = key("longest first, as the model spells them")
    spellings: list[Spelling] = key("of text in which vocabularies differ most")
    sample_bytes: int = key("of the text of `--data`")
    sample_tokens: int = key("that it becomes")
    bytes_per_token: Number = key("of that text")
    byte_fallback_rate: Number = key("share of tokens that are parts of a character, 0 to 1")
    unused_text_pieces: int = key("pieces that the text never needed")
    unused_share: Number = key("of all pieces of text, 0 to 1")
    rarest_pieces: list[UsedPiece] = key("of those that were needed, the rarest first")
    sources: list[Fit] = key("one a `--data`")
    beside: list[Fit] = key("other tokenizers on all of that text")
