"""`llmtrain data cache list|clear`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from rich.table import Table

    from llmtrain.data.shards.cache import CacheEntry
    from llmtrain.documents.data import CacheEntry as Document

_SHORTEST_KEY = 6  # characters of a prefix that names an entry
_NARROW_KEY, _WIDE_COLUMNS = 12, 100


def list_entries(output: Output) -> None:
    """List every entry with its size, age and sources, the newest first."""
    from llmtrain.data.shards.cache import cache_entries
    from llmtrain.documents.data import DataCacheList
    from llmtrain.files import cache_directory
    from llmtrain.units import format_bytes

    entries = cache_entries(cache_directory())
    size_bytes = sum(entry.size_bytes for entry in entries)
    document = DataCacheList.of(
        cache=cache_directory(), size_bytes=size_bytes, entries=_documents(entries)
    )
    note = f"{len(entries)} entries, {format_bytes(size_bytes)}, in {cache_directory()}"
    parts = [_table(document.entries, output.stdout.width)] if entries else []
    output.answer(document, parts, note)


def clear(
    output: Output,
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY…", help="Entries by key, or by the first characters of a key."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="30d", help="Entries older than this."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every entry.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> int:
    """Remove entries, except those that a process has open or is writing."""
    from llmtrain.data.shards.cache import cache_entries
    from llmtrain.documents.data import DataCacheClear
    from llmtrain.files import cache_directory
    from llmtrain.units import format_bytes

    chosen = _chosen(cache_entries(cache_directory()), keys or [], older_than, is_all=all_)
    size = format_bytes(sum(entry.size_bytes for entry in chosen))
    is_declined = (
        bool(chosen)
        and not yes
        and _is_terminal()
        and not typer.confirm(f"Remove {len(chosen)} entries, {size}?", err=True)
    )
    removed, kept = _remove([] if is_declined else chosen)
    freed_bytes = sum(entry.size_bytes for entry in removed)
    document = DataCacheClear.of(
        removed=_documents(removed), in_use=_documents(kept), freed_bytes=freed_bytes
    )
    if not output.json:
        for entry in kept:
            output.warning(f"{entry.directory} is in use by a process and was not removed")
    note = f"{len(removed)} entries removed, {format_bytes(freed_bytes)}"
    parts = [_table(document.removed, output.stdout.width)] if document.removed else []
    output.answer(document, parts, note)
    return 130 if is_declined else 0


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _chosen(
    entries: Sequence[CacheEntry], keys: Sequence[str], older_than: str | None, *, is_all: bool
) -> list[CacheEntry]:
    """Return the entries that match all conditions. Raises UsageError without any condition."""
    from llmtrain.errors import UsageError
    from llmtrain.units import parse_duration_s

    if not keys and older_than is None and not is_all:
        raise UsageError("no entries are named", hint="give keys, --older-than 30d, or --all")
    try:
        min_age_s = parse_duration_s(older_than) if older_than is not None else 0.0
    except ValueError as error:
        raise UsageError(f"--older-than: {error}") from None
    named = {entry.directory for key in keys for entry in _named(entries, key)}
    return [
        entry
        for entry in entries
        if (not keys or entry.directory in named) and entry.age_s() >= min_age_s
    ]


def _named(entries: Sequence[CacheEntry], key: str) -> list[CacheEntry]:
    from llmtrain.errors import UsageError

    found = [entry for entry in entries if entry.key.startswith(key)]
    if len(key) < _SHORTEST_KEY or len({entry.key for entry in found}) != 1:
        problem = f"{len(found)} entries start with it" if found else "there is no such entry"
        raise UsageError(f"key {key!r}: {problem}", hint="llmtrain data cache list")
    return found


def _remove(entries: Sequence[CacheEntry]) -> tuple[list[CacheEntry], list[CacheEntry]]:
    """Remove entries; return the removed ones, and those that stay because they are in use."""
    from llmtrain.data.shards.cache import open_directories, remove_entry
    from llmtrain.files import cache_directory

    in_use = open_directories(entries)
    removed: list[CacheEntry] = []
    kept: list[CacheEntry] = []
    for entry in entries:
        is_removed = entry.directory not in in_use and remove_entry(cache_directory(), entry)
        (removed if is_removed else kept).append(entry)
    return removed, kept


def _documents(entries: Sequence[CacheEntry]) -> list[Document]:
    from llmtrain.documents.data import CacheEntry as Document

    return [Document.of(entry, age_s=entry.age_s()) for entry in entries]


def _table(entries: Sequence[Document], columns: int) -> Table:
    """Return the entries; a narrow one with the beginnings of keys, which name them too."""
    from llmtrain.cli.tables import columns_table
    from llmtrain.units import format_bytes, format_count, format_duration

    shown = _NARROW_KEY if columns < _WIDE_COLUMNS else None
    rows = [
        (
            entry.key[:shown],
            entry.kind,
            format_bytes(entry.size_bytes),
            format_duration(entry.age_s),
            "" if entry.tokens is None else format_count(entry.tokens),
            ", ".join(entry.made_from),
        )
        for entry in entries
    ]
    headings = ("key", "kind", "size", "age", "tokens", "text")
    return columns_table(headings, rows, numbers=("size", "age", "tokens"))
