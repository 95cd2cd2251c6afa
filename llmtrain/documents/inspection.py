"""The document about what is in a text."""

from __future__ import annotations

from typing import Any, Literal

from llmtrain.documents.base import Document, Number, Part, key


class OriginOf(Part):
    """A document that was left out."""

    origin: str = key("its file, with a line or member where there are several in it")
    beginning: str = key("its first characters")


class LeftOut(Part):
    """What was left out for one reason. A document counts for the first that applies."""

    reason: str = key("in words for people; they may change")
    documents: int = key("that were left out")
    text_bytes: int = key("of their text")
    examples: list[OriginOf] = key("the first three at most")


class LengthBin(Part):
    """Documents of about one length."""

    from_bytes: int = key("of text and more, but fewer than twice as many")
    documents: int = key("of that length")
    text_bytes: int = key("of their text")


class Longest(Part):
    """The longest document."""

    origin: str = key("its file, with a line or member where there are several in it")
    text_bytes: int = key("of its text")


class Copies(Part):
    """Documents that repeat an earlier one."""

    documents: int = key("how many; of equal ones the first is not counted")
    text_bytes: int = key("of their text")


class Leakage(Part):
    """Held-out text that is trained on too."""

    units: Literal["documents", "blocks"] = key(
        "what was compared: documents, or blocks where there are too few to hold out whole ones"
    )
    held_out: int = key("that were compared")
    copies: int = key("of those, near copies of what is trained on, equal ones too")
    train_share: float = key("of what is trained on, that they were compared with, above 0 to 1")
    share: float = key("of what is held out, 0 to 1; an estimate where `train_share` is below 1")


class Sample(Part):
    """A document drawn by chance."""

    origin: str = key("its file, with a line or member where there are several in it")
    beginning: str = key("its first thousand characters")
    text_bytes: int = key("of all its text")


class Epochs(Part):
    """How often a run would read the text."""

    profile: str = key("the profile's name")
    trained_tokens: int | None = key("in all; null: under a time, or a number of epochs")
    epochs: Number = key("of the text that is trained on; null: not known")
    reason: str = key("how it is known, or why not, in words for people; they may change")


class DataInspect(Document):
    """`llmtrain data inspect`: what is in a text, after `data.filters` and `data.duplicates`."""

    sources: list[dict[str, Any]] = key("by spec: its kind and files")
    skipped: dict[str, int] = key("files that are not read, by reason")
    only_first_documents: int | None = key("of `--sample`; null: all")
    left_out: list[LeftOut] = key("by the profile's rules, which the rest of this is without")
    documents: int = key("that are not empty")
    bytes: int = key("of their text as UTF-8")
    characters: int = key("of their text")
    tokens: int | None = key("with a separator a document; null: not counted")
    bytes_per_token: Number = key("of text; null: not counted")
    tokenizer: str | None = key("the directory of what counted them; null: not counted")
    fingerprint: str = key("sha256 over the sha256 of each document, in order")
    lengths: list[LengthBin] = key("without gaps, the shortest first")
    longest: Longest = key("the longest document")
    equal: Copies = key("documents that are equal to an earlier one")
    near: Copies | None = key(
        "near copies of an earlier one, without the equal ones; null: rensa is not installed"
    )
    leakage: Leakage | None = key("null: rensa is not installed, and it is not known from before")
    languages: dict[str, int] | None = key(
        "by ISO 639 code, of up to 1,000 documents drawn by chance; null: py3langid is missing"
    )
    samples: list[Sample] = key("a few, drawn by chance, the same ones every time")
    epochs: Epochs | None = key("null without `--profile`")
