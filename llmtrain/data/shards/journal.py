"""`journal.json`: the progress of an unfinished preparation, from which the next one continues.

Both sides are written at the same time, so the journal records both at the end of one batch. What
was written after it is truncated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from llmtrain.data.shards.cache_entry import JOURNAL_NAME
from llmtrain.data.shards.encode import Part
from llmtrain.data.shards.index import STRICT, SplitFacts
from llmtrain.files import write_text_atomically
from llmtrain.untrusted import JSON_BYTES, parse_model, read_bytes


@dataclass(frozen=True, slots=True, config=STRICT)
class Journal:
    """The state of both sides on disk. The last shard of each may be incomplete.

    `text_sha256` is of all text up to there, and of how it was cut into `parts`.
    """

    parts: NonNegativeInt
    text_sha256: str
    batch_bytes: NonNegativeInt
    shard_bytes: NonNegativeInt
    train: SplitFacts
    validation: SplitFacts


class StaleJournalError(Exception):
    """The files of an earlier process do not match its journal, or are of another text."""


class PartsRead:
    """A counter and hash of parts in their order."""

    def __init__(self) -> None:
        self.count = 0
        self.text_bytes = 0
        self._digest = hashlib.sha256()

    def add(self, parts: Iterable[Part]) -> None:
        """Add parts, in order."""
        for part in parts:
            self._digest.update(f"{part.side} {part.begins_piece} {len(part.data)}\n".encode())
            self._digest.update(part.data)
            self.count += 1
            self.text_bytes += len(part.data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def require(self, journal: Journal) -> None:
        """Raise StaleJournalError if the parts so far are not those of the journal."""
        if (self.count, self.hexdigest()) != (journal.parts, journal.text_sha256):
            raise StaleJournalError("it is of another text")


def write_journal(directory: Path, journal: Journal) -> None:
    """Write the journal to `directory`."""
    write_text_atomically(directory / JOURNAL_NAME, json.dumps(asdict(journal)) + "\n")


def read_journal(directory: Path, *, batch_bytes: int, shard_bytes: int) -> Journal | None:
    """Read the journal in `directory`; None if there is none for these sizes."""
    try:
        journal = parse_model(Journal, read_bytes(directory / JOURNAL_NAME, JSON_BYTES))
    except (OSError, ValueError):
        return None
    is_same = (journal.batch_bytes, journal.shard_bytes) == (batch_bytes, shard_bytes)
    return journal if is_same else None
