"""List the files of a directory, a glob or the standard library, the same on every platform."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from llmtrain.data.document import Skipped
from llmtrain.data.formats.registry import FileFormat
from llmtrain.data.formats.streams import readable
from llmtrain.data.reading import SourceFile
from llmtrain.data.sources.exclusions import (
    listed_files,
    reason_against_directory,
    reason_against_file,
)
from llmtrain.data.sources.gitignore import Ignored, PathFilter, Selection, ignored_in, is_ignored

_GLOB_CHARACTERS = frozenset("*?[")
_LINKED = "a link to a directory"
_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})
Found = Path | Skipped


@dataclass(frozen=True, slots=True)
class _Walk:
    """A walk through directories."""

    path_filter: PathFilter

    def below(
        self, directory: Path, prefix: str, ignored: tuple[Ignored, ...] = ()
    ) -> Iterator[Found]:
        """Yield every file below `directory`, whose path is `prefix` for the filter."""
        own = ignored_in(directory, prefix)
        ignored = (*ignored, own) if own is not None else ignored
        listed = listed_files(directory)
        for entry in _visible(directory):
            if entry.is_dir(follow_symlinks=False):
                path = f"{prefix}{entry.name}/"
                reason = self._reason_against(path, ignored)
                reason = reason or reason_against_directory(Path(entry.path))
                if reason is None:
                    yield from self.below(Path(entry.path), path, ignored)
                else:
                    yield Skipped(f"{entry.path}{os.sep}", reason)
            elif _leads_to_directory(entry):
                yield Skipped(entry.path, _LINKED)
            else:
                path = f"{prefix}{entry.name}"
                reason = self._reason_against(path, ignored)
                yield _file(entry, reason, listed)

    def _reason_against(self, path: str, ignored: Sequence[Ignored]) -> str | None:
        if is_ignored(path, ignored):
            return "in .gitignore"
        return self.path_filter.reason_against(path)

    def matching(self, directory: Path, prefix: str, segments: Sequence[str]) -> Iterator[Found]:
        """Yield every file below `directory` that the rest of a glob names."""
        if not segments:
            yield from self.below(directory, prefix)
            return
        head, rest = segments[0], segments[1:]
        if head == "**":
            yield from self.matching(directory, prefix, rest)
        listed = listed_files(directory) if is_glob(head) else None
        for entry in _visible(directory, even_hidden=head.startswith(".")):
            path = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if not (head == "**" or fnmatchcase(entry.name, head)):
                    continue
                reason = reason_against_directory(Path(entry.path)) if is_glob(head) else None
                if reason is not None:
                    yield Skipped(f"{entry.path}{os.sep}", reason)
                elif head == "**":
                    yield from self.matching(Path(entry.path), f"{path}/", segments)
                else:
                    yield from self.matching(Path(entry.path), f"{path}/", rest)
            elif not rest and fnmatchcase(entry.name, head):
                reason = _LINKED if _leads_to_directory(entry) else self._reason_against(path, ())
                yield _file(entry, reason, listed)


def is_glob(spec: str) -> bool:
    """Return whether `spec` has a wildcard."""
    return not _GLOB_CHARACTERS.isdisjoint(spec)


def found_below(directory: Path, selection: Selection) -> Iterator[Found]:
    """Yield the files below `directory` in order, and those that the selection skips.

    An excluded directory counts as one skipped item, and its files are not listed. Links to
    directories are not followed, so a cycle of links ends.
    """
    return _Walk(PathFilter(selection)).below(directory, "")


def found_matching(pattern: Path, selection: Selection) -> list[Found]:
    """Return the files that match the glob, in order, and those that the selection skips.

    `**` matches any number of directories. A directory that matches includes all files below
    it, as it does when a shell expands the glob. A .gitignore applies only there, and not to a file
    whose own name matches.
    """
    # A second `**` in a row only adds paths to the same file, exponentially many.
    before = ("", *pattern.parts)
    parts = [p for p, last in zip(pattern.parts, before, strict=False) if (p, last) != ("**", "**")]
    fixed = next(index for index, part in enumerate(parts) if is_glob(part))
    found = set(_Walk(PathFilter(selection)).matching(Path(*parts[:fixed]), "", parts[fixed:]))
    files = {each for each in found if isinstance(each, Path)}
    # A file skipped by one expansion of a `**` may be matched by another.
    named = files.union(*(file.parents for file in files))
    skipped = (e for e in found if isinstance(e, Skipped) and Path(e.origin) not in named)
    return sorted(
        [*files, *skipped],
        key=lambda each: (each if isinstance(each, Path) else Path(each.origin)).parts,
    )


def _file(entry: os.DirEntry[str], reason: str | None, listed: frozenset[str] | None) -> Found:
    path = Path(entry.path)
    reason = reason or reason_against_file(path, listed)
    return path if reason is None else Skipped(entry.path, reason)


def _leads_to_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a cycle of links, which is not a regular file either
        return False


def _visible(directory: Path, *, even_hidden: bool = False) -> list[os.DirEntry[str]]:
    """Return entries sorted by code point, independent of the locale and the file system.

    Git's own files are never among them.
    """
    if not directory.is_dir():
        return []
    with readable(str(directory)), os.scandir(directory) as entries:
        chosen = [
            entry
            for entry in entries
            if (even_hidden or not entry.name.startswith(".")) and entry.name != ".git"
        ]
    return sorted(chosen, key=lambda entry: entry.name)


def files_below(directory: Path, without: Collection[str] = ()) -> list[Path]:
    """Return every file that is not hidden, in order, also those that a .gitignore excludes.

    Directories with a name in `without` are not looked into.
    """
    found: list[Path] = []
    for where, directories, names in os.walk(directory):
        directories[:] = [n for n in directories if not n.startswith(".") and n not in without]
        paths = (Path(where, name) for name in names if not name.startswith("."))
        found += (path for path in paths if path.is_file())
    return sorted(found, key=lambda path: path.relative_to(directory).parts)


def library_files() -> list[SourceFile]:
    """Return the `.py` files of the interpreter's own standard library, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = files_below(root, without=_NOT_THE_LIBRARY)  # there may be many more than are its own
    names = (path.relative_to(root) for path in files if path.suffix == ".py")
    return [
        SourceFile(root / name, f"builtin:python/{name.as_posix()}", FileFormat("python"))
        for name in names
        if _NOT_THE_LIBRARY.isdisjoint(name.parts)
    ]
