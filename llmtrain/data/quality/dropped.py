"""Documents dropped from a corpus, counted by reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from llmtrain.data.document import Document
from llmtrain.errors import DataError
from llmtrain.units import format_bytes

_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class DroppedDocuments:
    """The dropped documents, a bit each; decided once, so that every pass is the same."""

    documents: int  # of the corpus, including those that are dropped
    characters: int  # including those that are dropped; differs if the text has changed
    bits: bytes  # the first document in the lowest bit of the first byte

    def filter(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Yield the documents that are kept, in order. Raises DataError if the text has changed."""
        read = characters = 0
        for document in documents:
            read, characters = read + 1, characters + len(document.text)
            if read > self.documents:
                break
            if not self.bits[(read - 1) >> 3] >> ((read - 1) & 7) & 1:
                yield document
        if (read, characters) != (self.documents, self.characters):
            raise DataError(
                "the text changed while it was being read", hint="run the command again"
            )


@dataclass(frozen=True, slots=True)
class Example:
    """A dropped document."""

    origin: str
    beginning: str  # its first characters


@dataclass(slots=True)
class DropCount:
    """The count of documents dropped for one reason."""

    reason: str
    documents: int = 0
    text_bytes: int = 0
    examples: list[Example] = field(default_factory=list)  # the first few

    def add(self, document: Document) -> None:
        """Count a document dropped for this reason."""
        self.documents += 1
        self.text_bytes += len(document.text.encode())
        if len(self.examples) < _EXAMPLES:
            beginning = document.text[:_EXAMPLE_CHARACTERS]
            self.examples.append(Example(document.origin, beginning))

    def add_bad(self, error: DataError) -> None:
        """Count a record that could not be used, with the error as its example."""
        self.documents += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(Example(error.message, ""))

    def describe(self) -> str:
        """Return one line: the number of documents, their size, and the examples."""
        some = "; ".join(map(_shown, self.examples))
        kind = "document" if self.documents == 1 else "documents"
        size = f" ({format_bytes(self.text_bytes)})" if self.text_bytes else ""
        return f"{self.documents} {kind}{size} {self.reason}, for example {some}"

    def document(self) -> dict[str, object]:
        """Return the same, ready for JSON."""
        return asdict(self)


def _shown(example: Example) -> str:
    beginning = " ".join(example.beginning.split())
    return f"{example.origin} ({beginning}…)" if beginning else example.origin
