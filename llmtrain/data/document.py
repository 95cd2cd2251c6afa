"""A document, the options for reading files, and the limits on their size."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from llmtrain.errors import DataError

# Of one document in memory; processing it takes several times as much.
LONGEST_BYTES = 32 << 20
# What a record has: a text, a conversation, a pair of them. kind: only which of the last two.
Rows = Literal["text", "chat", "preferences", "kind"]


@dataclass(frozen=True, slots=True)
class Document:
    """One text, independent of all others, and its origin."""

    text: str
    origin: str
    part_at: int | None = None  # the byte at which this part of a very long text begins
    held_out: bool = False  # it is from a source for validation

    def place(self, offset: int) -> str:
        """Return the place in its file of a byte of this text, for messages."""
        return f"{self.origin}@{(self.part_at or 0) + offset}"

    def digest(self) -> bytes:
        """Return the sha256 of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).digest()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was found and is skipped, with the reason."""

    origin: str
    reason: str


def no_text_file(skipped: Iterable[Skipped]) -> str:
    """Return that there is no text file, with the reasons for which files were skipped."""
    counts = Counter(each.reason for each in skipped)
    why = "; ".join(f"{count} skipped: {reason}" for reason, count in counts.items())
    return "no text file" + (f" ({why})" if why else "")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits against decompression bombs. Text packs 2 to 50 times, a bomb 1,000 times or more.

    A file is an error if it unpacks to more than `unpacked_bytes` and to more than `unpacked_ratio`
    times its own size.
    """

    longest_bytes: int = LONGEST_BYTES
    unpacked_bytes: int = 1 << 30
    unpacked_ratio: int = 300


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """Options for reading records: the field with the text, and the greatest length of a text.

    `rows`: whether a record has a text or a conversation. `on_bad`: called with the error of a
    record that cannot be used, which is then left out; None: the error is raised.
    """

    text_field: str = "text"
    rows: Rows = "text"
    longest_bytes: int = LONGEST_BYTES
    on_bad: Callable[[DataError], None] | None = None

    def attempt(self, read: Callable[[], Document]) -> Iterator[Document]:
        """Yield the document that `read` returns, unless it is bad. Raises DataError."""
        try:
            found = read()
        except DataError as error:
            if self.on_bad is None:
                raise
            self.on_bad(error)
            return
        yield found


class NoRecordsError(DataError):
    """No record of the file has the text field.

    `reason`: the same in a few words, for a file that was found in a directory and not named.
    """

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
