"""Documents about text that was prepared."""

from __future__ import annotations

from typing import Any, Literal

from llmtrain.documents.base import Document, Part
from llmtrain.documents.base import key as said


class DataPrepare(Document):
    """`llmtrain data prepare`: token shards in the cache."""

    directory: str = said("where the shards are")
    key: str = said("names them: of the text, the tokenizer and the settings")
    tokenizer: str = said("the tokenizer's directory")
    vocab_size: int = said("its pieces")
    documents: int = said("that a separator begins: of a text in blocks, the pieces it is cut into")
    text_bytes: int = said("of text that was encoded, which is all that was read")
    tokens: int = said("of both sides, separators included")
    train_tokens: int = said("to train on")
    validation_tokens: int = said("held out")
    bytes_per_token: float = said("of text, on average")
    seconds: float = said("that it took, reading and verifying included")
    sources: list[dict[str, Any]] = said("by spec: its kind, files, and files skipped by reason")
    left_out: list[dict[str, Any]] = said("by the profile's rules: how many, how much, examples")


class CacheEntry(Part):
    """A directory of the cache, or a file that was fetched."""

    kind: Literal["shards", "tokenizer", "fetched", "unfinished"] = said(
        "fetched: from another place; unfinished: shards that the same preparation goes on with"
    )
    key: str = said("names it")
    directory: str = said("where it is")
    size_bytes: int = said("of its files")
    age_s: float = said("seconds since it was last written to")
    made_from: list[str] = said("sources of its text; empty where it does not say")
    tokens: int | None = said("of both sides; null: no shards, or they do not say")


class DataCacheList(Document):
    """`llmtrain data cache list`: the newest first."""

    cache: str = said("the cache's directory")
    size_bytes: int = said("of all entries")
    entries: list[CacheEntry] = said("token shards, tokenizers, what was fetched")


class DataCacheClear(Document):
    """`llmtrain data cache clear`."""

    removed: list[CacheEntry] = said("what is gone")
    in_use: list[CacheEntry] = said("what stays, because a process has it open or is making it")
    freed_bytes: int = said("of what is gone")
