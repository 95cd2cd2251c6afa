"""`manifest.json`: the origin of token shards, for people and listings: sources, versions and time.

Nothing depends on it: an entry without one, made by an earlier version, is valid.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llmtrain
from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.shards.index import ShardIndex
from llmtrain.files import escape_names, write_pieces_atomically
from llmtrain.untrusted import read_json

MANIFEST_NAME = "manifest.json"
_LIBRARIES = ("sentencepiece", "numpy")


def write_manifest(
    directory: Path,
    index: ShardIndex,
    corpus: Corpus,
    stats: CorpusStats,
    seconds: float,
    made_from: Mapping[str, object],
) -> None:
    """Write the manifest of the entry to `directory`, with the fields of `made_from`."""
    sides = (index.train, index.validation)
    tokens = sum(side.tokens for side in sides)
    encoded_bytes = sum(side.text_bytes for side in sides)
    record = {
        "key": index.key,
        "made": {"at": now_utc(), "seconds": round(seconds, 3), "versions": versions()},
        "sources": corpus.describe(),
        "text_field": corpus.options.text_field,
        "text": {
            "documents": stats.documents,
            "bytes_read": stats.text_bytes,
            "bytes_encoded": encoded_bytes,
            "sha256": stats.fingerprint,
        },
        "tokenizer": {
            "sha256": index.encoder_fingerprint,
            "vocab_size": index.vocab_size,
            "separator_id": index.separator_id,
        },
        "split": {"by": index.split_by, "validation_fraction": index.validation_fraction},
        "tokens": {
            "train": index.train.tokens,
            "validation": index.validation.tokens,
            "bytes_per_token": round(encoded_bytes / tokens, 4),
        },
        **made_from,
    }
    write_record(directory, record)


def write_record(directory: Path, record: Mapping[str, object]) -> None:
    """Write the record to `directory` as its manifest."""
    text = json.dumps(escape_names(record), indent=2, ensure_ascii=False, default=str) + "\n"
    write_pieces_atomically(directory / MANIFEST_NAME, [text.encode()])


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Read the manifest in `directory`; None if there is none that can be read."""
    try:
        record = read_json(directory / MANIFEST_NAME)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def now_utc() -> str:
    """Return the time in ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of the software that determines the tokens."""
    found = {name: version(name) for name in _LIBRARIES}
    return {"llmtrain": llmtrain.__version__, "python": platform.python_version(), **found}
