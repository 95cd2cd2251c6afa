"""What is in a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

from llmtrain.documents.base import Document, Number, Part, Text, key

if TYPE_CHECKING:
    from llmtrain.engine.inspect_data import DataReport


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

    @classmethod
    def of_report(cls, report: DataReport) -> Self:
        """Return the document of a text that was inspected."""
        found, facts = report.found, report.found.facts
        return cls.of(
            report,  # sources, skipped, left_out, leakage, tokenizer, samples, epochs
            only_first_documents=report.only_first,
            documents=facts.documents,
            bytes=facts.text_bytes,
            characters=found.characters,
            tokens=found.tokens,
            bytes_per_token=facts.text_bytes / found.tokens if found.tokens else None,
            fingerprint=facts.fingerprint,
            lengths=found.lengths,
            longest=found.longest,
            equal=found.equal,
            near=found.near,
            languages=found.languages,
        )
