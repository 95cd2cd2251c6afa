"""The entries of the cache for text: shards, tokenizers, fetched files and unfinished entries.

Fetched files are in `remote/files`, each once; an entry of `remote/trees` has links to
those of one source. A file that no tree links to is an entry itself.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from filelock import Timeout

from llmtrain.data.shards.cache_entry import BUILDING, entry_lock
from llmtrain.data.shards.manifest import read_manifest

EntryKind = Literal["shards", "tokenizer", "fetched", "unfinished"]

_NAMED_FILES = 3


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A directory of the cache, or a file.

    What it was made from is unknown for entries made by earlier versions.
    """

    kind: EntryKind
    key: str
    directory: Path
    size_bytes: int
    changed_s: float  # by the system's clock, when a file of it was last written
    made_from: tuple[str, ...]
    tokens: int | None

    def age_s(self) -> float:
        """Return seconds since it was last written to."""
        return max(0.0, time.time() - self.changed_s)


def cache_entries(cache_directory: Path) -> list[CacheEntry]:
    """Return every entry, the last written first."""
    found = [
        *_entries("shards", cache_directory / "shards"),
        *_entries("tokenizer", cache_directory / "tokenizers"),
        *_entries("fetched", cache_directory / "remote" / "datasets"),
        *_entries("fetched", cache_directory / "remote" / "trees"),
        *_entries("fetched", cache_directory / "remote" / "files"),
    ]
    return sorted(found, key=lambda entry: (-entry.changed_s, entry.key))


def _entries(kind: EntryKind, parent: Path) -> Iterator[CacheEntry]:
    if not parent.is_dir():
        return
    for directory in sorted(parent.iterdir()):
        with suppress(FileNotFoundError):  # another process removes it, or moves it to its place
            if directory.is_dir() or directory.stat().st_nlink == 1:
                yield _entry(kind, directory)


def _entry(kind: EntryKind, directory: Path) -> CacheEntry:
    is_unfinished = directory.name.startswith(BUILDING)
    below = list(directory.rglob("*")) if directory.is_dir() else [directory]
    stat = [path.stat() for path in (directory, *below)]
    manifest = read_manifest(directory) or {}
    return CacheEntry(
        kind="unfinished" if is_unfinished else kind,
        key=directory.name.removeprefix(BUILDING),
        directory=directory,
        size_bytes=sum(each.st_size for each in stat[1:]),
        changed_s=max(each.st_mtime for each in stat),
        made_from=_specs(manifest.get("sources")) or _names(kind, directory, below),
        tokens=_tokens(manifest.get("tokens")),
    )


def _specs(sources: object) -> tuple[str, ...]:
    if not isinstance(sources, list):
        return ()
    return tuple(str(each["spec"]) for each in sources if isinstance(each, dict) and "spec" in each)


def _names(kind: EntryKind, directory: Path, below: Sequence[Path]) -> tuple[str, ...]:
    """Return the first names of fetched files, to describe an entry without a manifest."""
    files = [path for path in below if path.is_file()] if kind == "fetched" else []
    names = tuple(path.relative_to(directory).as_posix() for path in files[:_NAMED_FILES])
    return (*names, "…") if len(files) > _NAMED_FILES else names


def _tokens(counts: object) -> int | None:
    match counts:
        case {"train": int(train), "validation": int(validation)}:
            return train + validation
    return None


def open_directories(entries: Sequence[CacheEntry]) -> set[Path]:
    """Return the directories of entries in use: a visible process has a file of them open.

    A process that trains or evaluates has its shards open; Windows refuses to remove them.
    """
    directories = {os.path.realpath(entry.directory): entry.directory for entry in entries}
    found: set[Path] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            for file in process.open_files():
                parents = (str(parent) for parent in Path(os.path.realpath(file.path)).parents)
                found.update(directories[each] for each in parents if each in directories)
    return found


def remove_entry(cache_directory: Path, entry: CacheEntry) -> bool:
    """Remove the entry; return False if a process builds it or the system refuses.

    Removal is atomic: no other process finds a part of the entry.
    """
    parent = entry.directory.parent
    linked = _linked_files(entry)
    removed = parent / f"{BUILDING}removed-{entry.key}-{time.time_ns()}"
    try:
        with entry_lock(cache_directory, entry.key).acquire(timeout=0):
            entry.directory.rename(removed)
    except (Timeout, OSError):
        return False
    if removed.is_dir():
        shutil.rmtree(removed, ignore_errors=True)
    else:
        removed.unlink(missing_ok=True)
    _remove_unlinked(parent.parent / "files", linked)
    return True


def _linked_files(entry: CacheEntry) -> set[int]:
    """Return the inode numbers of the files that an entry links to."""
    if entry.kind != "fetched" or not entry.directory.is_dir():
        return set()
    return {path.stat().st_ino for path in entry.directory.rglob("*") if path.is_file()}


def _remove_unlinked(files: Path, numbers: set[int]) -> None:
    """Remove those of the files that no tree links to any more."""
    for path in files.iterdir() if numbers and files.is_dir() else ():
        with suppress(OSError):
            stat = path.stat()
            if stat.st_ino in numbers and stat.st_nlink == 1:
                path.unlink()
