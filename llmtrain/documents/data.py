"""Documents about text that was prepared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

from llmtrain.documents.base import Document, Part, Text
from llmtrain.documents.base import key as described

if TYPE_CHECKING:
    from llmtrain.data.shards.cache import CacheEntry as Entry
    from llmtrain.engine.prepare_data import PreparedAhead


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

    @classmethod
    def of_prepared(cls, prepared: PreparedAhead) -> Self:
        """Return the document of prepared shards."""
        index = prepared.index
        return cls.of(
            prepared,  # directory, tokenizer, text_bytes, tokens, seconds, sources, left_out
            key=index.key,
            vocab_size=index.vocab_size,
            documents=index.train.documents + index.validation.documents,
            train_tokens=index.train.tokens,
            validation_tokens=index.validation.tokens,
            bytes_per_token=prepared.text_bytes / prepared.tokens,
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

    @classmethod
    def of_entry(cls, entry: Entry) -> Self:
        """Return the entry with its age now."""
        return cls.of(entry, age_s=entry.age_s())


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
