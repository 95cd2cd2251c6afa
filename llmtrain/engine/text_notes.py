"""What a run trains on, in words, before anything of it is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

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


def text_notes(loaded: LoadedProfile, here: Path) -> Iterator[str]:
    """Yield lines that say what text a run reads, its size, and that text in `here` is unused."""
    data, origin = loaded.profile.data, loaded.origin_of("data.sources")
    for spec in data.specs:
        yield f"text: {without_secrets(spec)}{_size_of(spec, data)} ({origin})"
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
                _files_of(spec, data)
        except LlmtrainError as error:
            yield f"{error.message} ({loaded.origin_of(key)}): training would be refused"


def _is_elsewhere(spec: str) -> bool:
    return "://" in spec or spec == "-"


def _files_of(spec: str, data: DataSection) -> list[Path]:
    corpus = resolve_sources(
        [spec],
        text_field=data.text_field,
        rows=data.rows,
        include=data.include,
        exclude=data.exclude,
        skips_bad=data.on_error == "skip",
    )
    return [Path(file.path) for source in corpus.sources for file in source.files]


def _size_of(spec: str, data: DataSection) -> str:
    """Return `, 37 files, 139 KiB` for local files; empty for what is elsewhere or missing."""
    if _is_elsewhere(spec):
        return ""
    try:
        paths = _files_of(spec, data)
        size = sum(path.stat().st_size for path in paths)
    except (LlmtrainError, OSError):
        return ""  # reading it says why
    return f", {counted(len(paths), 'file')}, {format_bytes(size)}"


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
