"""Documents about text: what is in it, what was prepared of it, and the cache."""

from __future__ import annotations

from typing import Any, Literal

from llmtrain.documents.base import Document, Number, Part, Text, key

described = key  # in classes with a field of that name


class DataPrepare(Document):
    """`llmtrain data prepare`: token shards in the cache."""

    directory: Text = described("where the shards are")
    key: Text = described("a hash of the text, the tokenizer and the settings")
    tokenizer: Text = described("the tokenizer's directory")
    vocab_size: int = described("its pieces")
    documents: int = described(
        "each starts with a separator; the blocks, of a text that is cut into blocks"
    )
    text_bytes: int = described("of the encoded text, which is all that was read")
    tokens: int = described("of training and validation text, separators included")
    train_tokens: int = described("to train on")
    validation_tokens: int = described("held out")
    bytes_per_token: float = described("of the text, on average")
    seconds: float = described("it took, reading and verifying included")
    sources: list[dict[Text, Any]] = described(
        "by spec: its kind, files, and files skipped by reason"
    )
    left_out: list[dict[Text, Any]] = described(
        "dropped by the profile's rules: how many, how much, examples"
    )


class CacheEntry(Part):
    """A directory of the cache, or a downloaded file."""

    kind: Literal["shards", "tokenizer", "fetched", "unfinished"] = described(
        "fetched: downloaded; unfinished: shards that the same preparation will continue"
    )
    key: Text = described("a hash of what it was made from")
    directory: Text = described("where it is")
    size_bytes: int = described("of its files")
    age_s: float = described("seconds since it was last written to")
    made_from: list[Text] = described("sources of its text; empty: unknown")
    tokens: int | None = described("of training and validation text; null: no shards, or unknown")


class DataCacheList(Document):
    """`llmtrain data cache list`: the newest first."""

    cache: Text = described("the cache's directory")
    size_bytes: int = described("of all entries")
    entries: list[CacheEntry] = described("token shards, tokenizers, downloads")


class DataCacheClear(Document):
    """`llmtrain data cache clear`."""

    removed: list[CacheEntry] = described("removed entries")
    in_use: list[CacheEntry] = described(
        "entries that stay, because a process has them open or is writing them"
    )
    freed_bytes: int = described("of the removed entries")


class OriginOf(Part):
    """A document that was dropped."""

    origin: Text = key("its file, with a line or member where there are several in it")
    beginning: Text = key("its first characters")


class LeftOut(Part):
    """Documents dropped for one reason, the first that applies."""

    reason: Text = key("in words for people; they may change")
    documents: int = key("dropped ones")
    text_bytes: int = key("of their text")
    examples: list[OriginOf] = key("the first three at most")


class LengthBin(Part):
    """Documents of about one length."""

    from_bytes: int = key(
        "the shortest: its documents have from that many bytes to fewer than twice as many"
    )
    documents: int = key("of that length")
    text_bytes: int = key("of their text")


class Longest(Part):
    """The longest document."""

    origin: Text = key("its file, with a line or member where there are several in it")
    text_bytes: int = key("of its text")


class Copies(Part):
    """Documents that repeat an earlier one."""

    documents: int = key("how many; of equal ones the first is not counted")
    text_bytes: int = key("of their text")


class Leakage(Part):
    """Held-out text that has a near copy in the training text."""

    units: Literal["documents", "blocks"] = key(
        "what was compared: documents, or blocks where there are too few to hold out whole ones"
    )
    held_out: int = key("number compared")
    copies: int = key("of those, near copies of training text, equal ones included")
    train_share: float = key(
        "share of the training text that they were compared with, above 0 to 1"
    )
    share: float = key(
        "copied share of the held-out text, 0 to 1; an estimate where `train_share` is below 1"
    )


class Sample(Part):
    """A document drawn at random."""

    origin: Text = key("its file, with a line or member where there are several in it")
    beginning: Text = key("its first thousand characters")
    text_bytes: int = key("of its whole text")


class Epochs(Part):
    """The number of times that a run would read the text."""

    profile: Text = key("the profile's name")
    trained_tokens: int | None = key("in all; null: under a time, or a number of epochs")
    epochs: Number = key("of the training text; null: unknown")
    reason: Text = key(
        "how it was computed, or why it is unknown, in words for people; they may change"
    )


class ChatSegment(Part):
    """A part of a rendered conversation."""

    text: Text = key("with control tokens by their names")
    carries_loss: bool = key("whether it is what the assistant says")


class DataInspectChat(Document):
    """`llmtrain data inspect --chat MODEL`: conversations or pairs, by a model's chat template."""

    model: Text = key("the directory of the model")
    marks_answers: bool = key(
        "whether `{% generation %}` in its template says what the assistant writes"
    )
    conversations: int = key("rows, each a conversation or a pair of answers")
    messages: int = key("of all conversations")
    tokens: int = key("of all conversations, however long")
    answer_tokens: int = key("of those, the ones that carry loss")
    context: int = key("tokens of a window: the profile's, or the model's if that is shorter")
    truncated: int = key("conversations that end early, with the last answer in the context")
    left_out: int = key("rows without an answer in the context, or whose pair does not fit")
    origin: Text = key("of the example: its file, with a line where there are several in it")
    example: list[ChatSegment] = key("a conversation as it is trained on, or a chosen answer")
    rejected: list[ChatSegment] | None = key("the rejected answer; null: a conversation")


class DataInspect(Document):
    """`llmtrain data inspect`: what is in a text, after `data.filters` and `data.duplicates`."""

    sources: list[dict[Text, Any]] = key("by spec: its kind and files")
    skipped: dict[Text, int] = key("files that are not read, by reason")
    only_first_documents: int | None = key("of `--sample`; null: all")
    left_out: list[LeftOut] = key(
        "dropped by the profile's rules; the rest of this document does not count them"
    )
    documents: int = key("that are not empty")
    bytes: int = key("of their text as UTF-8")
    characters: int = key("of their text")
    tokens: int | None = key("with a separator per document; null: not counted")
    bytes_per_token: Number = key("of text; null: not counted")
    tokenizer: Text | None = key(
        "the directory of the tokenizer that counted them; null: not counted"
    )
    fingerprint: Text = key("sha256 over the sha256 of each document, in order")
    lengths: list[LengthBin] = key("without gaps, the shortest first")
    longest: Longest = key("the longest document")
    equal: Copies = key("documents that are equal to an earlier one")
    near: Copies | None = key(
        "near copies of an earlier one, without the equal ones; null: rensa is not installed"
    )
    leakage: Leakage | None = key("null: rensa is not installed, and no earlier result is cached")
    languages: dict[Text, int] | None = key(
        "by ISO 639 code, of up to 1,000 documents drawn at random; null: py3langid is missing"
    )
    samples: list[Sample] = key("a few, drawn at random, the same ones every time")
    epochs: Epochs | None = key("null without `--profile`")
