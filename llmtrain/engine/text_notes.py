"""What a run trains on, in words, before anything of it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from llmtrain.data.corpus import Corpus
from llmtrain.data.sources.resolve import BUILTIN_PYTHON, resolve_sources
from llmtrain.data.sources.urls import without_secrets
from llmtrain.errors import LlmtrainError
from llmtrain.profile.load import LoadedProfile
from llmtrain.profile.schema import DataSection
from llmtrain.units import counted, format_bytes

_TEXT_SUFFIXES = {
    *(".txt", ".md", ".rst", ".tex", ".html", ".py", ".jsonl", ".csv", ".tsv", ".parquet"),
    *(".gz", ".zst", ".zip"),
}
_MOST_ENTRIES = 2000


def text_notes(loaded: LoadedProfile, resolve: Callable[[], Corpus], here: Path) -> Iterator[str]:
    """Yield lines that say what text a run reads, its size, and that text in `here` is unused.

    `resolve` is called for the first local source, when those before it are named.
    """
    data, origin = loaded.profile.data, loaded.origin_of("data.sources")
    for index, spec in enumerate(data.specs):
        size = "" if _is_elsewhere(spec) else _size_of(index, resolve)
        yield f"text: {without_secrets(spec)}{size} ({origin})"
    if data.specs == (BUILTIN_PYTHON,) and origin != "--data" and _has_text(here):
        yield "the files here are not used; --data . trains on them"


def unusable_text(loaded: LoadedProfile) -> Iterator[str]:
    """Yield why local text of a run cannot be used: a plan alone reads none of it."""
    data = loaded.profile.data
    named = [(spec, "data.sources") for spec in data.specs]
    if data.validation is not None:
        named.append((data.validation, "data.validation"))
    for spec, key in named:
        try:
            if not _is_elsewhere(spec):
                _require_files(spec, data)
        except LlmtrainError as error:
            yield f"{error.message} ({loaded.origin_of(key)}): training would be refused"


def _is_elsewhere(spec: str) -> bool:
    return "://" in spec or spec == "-"


def _require_files(spec: str, data: DataSection) -> None:
    resolve_sources(
        [spec],
        text_field=data.text_field,
        rows=data.rows,
        include=data.include,
        exclude=data.exclude,
        skips_bad=data.on_error == "skip",
    )


def _size_of(index: int, resolve: Callable[[], Corpus]) -> str:
    """Return `, 37 files, 139 KiB` for the files of a source; empty if they cannot be read."""
    try:
        files = resolve().sources[index].files
        size_bytes = sum(file.path.stat().st_size for file in files)
    except (LlmtrainError, OSError):
        return ""  # training says why
    return f", {counted(len(files), 'file')}, {format_bytes(size_bytes)}"


def _has_text(here: Path) -> bool:
    """Return True if a directory or one in it has files that are usually text."""
    try:
        visible = (path for path in here.iterdir() if path.name[0] != "." and path.name != "runs")
        for path in islice(visible, _MOST_ENTRIES):
            inside = islice(path.iterdir(), _MOST_ENTRIES) if path.is_dir() else ()
            if any(each.suffix.lower() in _TEXT_SUFFIXES for each in chain([path], inside)):
                return True
    except OSError:
        return False
    return False
