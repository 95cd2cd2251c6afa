"""Check whether a run's text has changed since it was prepared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from llmtrain.data.corpus import Corpus
from llmtrain.data.shards.manifest import read_manifest
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.data.sources.huggingface import is_dataset
from llmtrain.data.sources.resolve import BUILTIN_PYTHON
from llmtrain.data.sources.stdin import is_stdin
from llmtrain.data.sources.urls import is_remote, without_secrets
from llmtrain.errors import DataError, UsageError
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import clean_corpus
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note

_MOST_NAMES = 3


def require_same_text(
    corpus: Corpus,
    section: DataSection,
    recorded: DataSection,
    fingerprint: str,
    prepare: PrepareContext,
) -> None:
    """Raise UsageError unless the section's text has the fingerprint of the recorded one."""
    found = _fingerprint(corpus, section, prepare)
    if found != fingerprint:
        raise UsageError(
            f"the text of {', '.join(map(without_secrets, section.specs))} is not that of "
            f"{', '.join(map(without_secrets, recorded.specs))}, with which the run was started: "
            f"its sha256 is {found[:12]}…, and the run's {fingerprint[:12]}…",
            hint="leave --data out, name an unchanged copy, or start a new run with another --out",
        )


def announce_changes(
    resolve: Callable[[], Corpus],
    section: DataSection,
    shards: PreparedData,
    prepare: PrepareContext,
) -> None:
    """Warn if the text has changed since the shards were made, or is gone.

    The text is read only if a file is newer than the shards. Nothing is checked if any of it is
    remote, a dataset of the Hub, standard input or the built-in text.
    """
    specs = [*section.specs, *([section.validation] if section.validation else [])]
    if any(s == BUILTIN_PYTHON or is_stdin(s) or is_remote(s) or is_dataset(s) for s in specs):
        return
    names = ", ".join(map(without_secrets, specs))
    cached = "the run continues with the text as it was, from the cache"
    try:
        corpus = resolve()
        newer = _newer(corpus, shards)
        if newer is None or has_same_text(corpus, section, shards, prepare):
            return
    except DataError as error:
        prepare.observe(Note(f"{error.message}; {cached}", is_warning=True))
        return
    which = f" ({', '.join(newer)})" if newer else ""
    text = f"the text of {names} has changed since it was prepared{which}; {cached}"
    prepare.observe(Note(text, is_warning=True))


def has_same_text(
    corpus: Corpus, section: DataSection, shards: PreparedData, prepare: PrepareContext
) -> bool:
    """Return whether the corpus has the text that the shards were made from. Reads all of it."""
    return _fingerprint(corpus, section, prepare) == shards.index.corpus_fingerprint


def _fingerprint(corpus: Corpus, section: DataSection, prepare: PrepareContext) -> str:
    silent = replace(prepare, observe=lambda _: None)  # what is left out was announced at first
    cleaned = clean_corpus(corpus, section, silent).corpus
    return prepare.with_progress("comparing text", cleaned).measure(prepare.check_stop).fingerprint


def _newer(corpus: Corpus, shards: PreparedData) -> list[str] | None:
    """Return files that are newer than the shards, a few by name; None if nothing differs.

    An empty list: the number of files differs, or the time when the shards were made is unknown.
    """
    manifest = read_manifest(shards.directory) or {}
    files = [file for source in corpus.all_sources for file in source.files]
    try:
        made_s = datetime.fromisoformat(manifest["made"]["at"]).timestamp()
        recorded = sum(int(source["files"]) for source in manifest["sources"])
    except (KeyError, TypeError, ValueError):
        return []
    newer = [file.origin for file in files if _changed_s(file.path) >= made_s]
    if not newer:
        return None if recorded == len(files) else []
    more = len(newer) - _MOST_NAMES
    return [*newer[:_MOST_NAMES], *([f"and {more} more"] if more > 0 else [])]


def _changed_s(path: Path) -> float:
    """Return when the file was last written, renamed or replaced, by the system's clock."""
    try:
        stat = path.stat()
    except OSError:
        return float("inf")  # reading it will raise the error
    return max(stat.st_mtime, stat.st_ctime)
