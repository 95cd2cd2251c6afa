"""Filter found files by `data.include`, `data.exclude` and .gitignore.

All three use the patterns of .gitignore, which match paths below the directory that was named.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from llmtrain.data.formats.streams import readable
from llmtrain.errors import UsageError
from llmtrain.untrusted import open_regular

_GITIGNORE = ".gitignore"
_GITIGNORE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Selection:
    """Patterns of the files to read (without any: all files), and of the files to skip."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class PathFilter:
    """A filter of paths by a selection. Raises UsageError for an invalid pattern."""

    def __init__(self, selection: Selection) -> None:
        self._include = _patterns(selection.include, "data.include")
        self._exclude = _patterns(selection.exclude, "data.exclude")
        self._has_include = bool(selection.include)

    def reason_against(self, path: str) -> str | None:
        """Return why `path` is skipped, or None. A directory's path ends with a slash."""
        if self._exclude.match_file(path):
            return "in data.exclude"
        is_left_out = self._has_include and not path.endswith("/")
        return "not in data.include" if is_left_out and not self._include.match_file(path) else None


def _patterns(patterns: Sequence[str], key: str) -> GitIgnoreSpec:
    try:
        return _spec(patterns)
    except ValueError as error:
        raise UsageError(
            f"{key}: {' '.join(str(error).split())}",
            hint=f'patterns are those of .gitignore: --set \'{key}=["*.md", "docs/"]\'',
        ) from error


def _spec(lines: Iterable[str]) -> GitIgnoreSpec:
    """Return the patterns of `lines`. Raises ValueError for an invalid one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about syntax that a later `re` may change
        try:
            return GitIgnoreSpec.from_lines(lines, backend="simple")
        except re.error as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Ignored:
    """The patterns of one directory's .gitignore. `prefix` is that directory, with a slash."""

    prefix: str
    spec: GitIgnoreSpec


def ignored_in(directory: Path, prefix: str) -> Ignored | None:
    """Read the .gitignore in `directory`, if there is one. Raises DataError.

    A link is not followed, and an invalid line is ignored, as by git.
    """
    path = directory / _GITIGNORE
    with readable(str(directory)):
        if path.is_symlink() or not path.is_file():
            return None
    with readable(str(path)), open_regular(path) as file:
        text = file.read(_GITIGNORE_BYTES).decode("utf-8", "surrogateescape")
    lines = [line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n")]
    return Ignored(prefix, _spec(filter(_is_pattern, lines)))


def _is_pattern(line: str) -> bool:
    try:
        _spec([line])
    except ValueError:
        return False
    return True


def is_ignored(path: str, ignored: Sequence[Ignored]) -> bool:
    """Return whether git ignores `path`: the innermost .gitignore that matches decides."""
    for each in reversed(ignored):
        said = each.spec.check_file(path.removeprefix(each.prefix)).include
        if said is not None:
            return said
    return False
