"""Reading files that may hold anything: ordinary files of bounded size, plain JSON, whole lines.

A file that cannot be had raises OSError, one that holds what it should not ValueError: whoever
reads it knows what it was to be, and which error of its own that makes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.magic import other_content
from llmtrain.units import format_bytes

T = TypeVar("T")
JSON_BYTES = 2 << 20
LINE_BYTES = 1 << 20
# WINDOWS-1252 has all letters of LATIN1, and quotes and dashes where LATIN1 has controls.
CONVERT_HINT = "convert it first, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
_DEEPEST_LEVEL = 32
_LONGEST_INTEGER = 20  # characters: 64 bits and a sign
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_PIECE_BYTES = 1 << 16
_WRONG_KIND = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.EFBIG)
# Without these a name that became a pipe after it was looked at would be waited for.
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
)


def refuse_link(path: Path) -> None:
    """Raise UsageError if `path` is a symbolic link or a junction. It need not exist."""
    try:
        info = path.lstat()
    except (OSError, ValueError):
        return  # reading it says why
    is_link = stat.S_ISLNK(info.st_mode)
    if sys.platform == "win32":
        is_link = is_link or info.st_reparse_tag == stat.IO_REPARSE_TAG_MOUNT_POINT
    if is_link:
        raise UsageError(
            f"{path} is a symbolic link, and none is followed inside a run directory",
            hint="put what it points to in its place; the run directory itself may be a link",
        )


def open_regular(path: Path, *, follow_links: bool = False) -> BinaryIO:
    """Open a regular file. Raises OSError for any other kind, UsageError for links.

    Never waits: a pipe or a device under that name is not opened.
    """
    if not follow_links:
        refuse_link(path)
    _require_regular(path, path.stat().st_mode)
    flags = _OPEN_FLAGS | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    handle = os.open(path, flags)
    try:
        _require_regular(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def problem_of(error: OSError | ValueError) -> str:
    """Return why reading a file failed, without its name."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def is_unreached(error: OSError) -> bool:
    """Return whether the content was not seen, so that it may be intact.

    Otherwise the path was reached, and nothing or something else than a file is there.
    """
    return error.errno not in _WRONG_KIND


def unreadable(path: Path, error: OSError) -> LlmtrainError:
    """Return the error of what permissions, the disk or a removal keep from being read."""
    return LlmtrainError(
        f"{path} cannot be read: {problem_of(error)}",
        hint="nothing was renamed; make it readable and give the same command again",
    )


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a directory", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))


def read_bytes(path: Path, limit_bytes: int, *, follow_links: bool = False) -> bytes:
    """Read a regular file of at most `limit_bytes`. Raises OSError, UsageError for links."""
    with open_regular(path, follow_links=follow_links) as file:
        data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            size_bytes = max(len(data), os.fstat(file.fileno()).st_size)
            sizes = (
                f"it has {format_bytes(size_bytes)}, and the limit is {format_bytes(limit_bytes)}"
            )
            raise OSError(errno.EFBIG, sizes, str(path))
    return data


def read_json(path: Path, limit_bytes: int = JSON_BYTES) -> Any:
    """Read plain JSON from a small file. Raises OSError, ValueError, UsageError for links."""
    return parse_json(read_bytes(path, limit_bytes))


def read_lines(path: Path, limit_bytes: int = LINE_BYTES) -> Iterator[bytes]:
    """Yield each complete line, without its end; skip lines over `limit_bytes`.

    What follows the last line end was still being written, or never was a line. Raises OSError,
    UsageError for links.
    """
    with open_regular(path) as file:
        while line := file.readline(limit_bytes + 1):
            if line.endswith(b"\n"):
                yield line[:-1]
            elif len(line) > limit_bytes:
                _skip_line(file)


def _skip_line(file: BinaryIO) -> None:
    while (piece := file.readline(_PIECE_BYTES)) and not piece.endswith(b"\n"):
        pass


def read_last_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of the last whole lines of a file, the newest first.

    Reads the last 64 KiB however long the file is. Yields nothing if it cannot be read.
    """
    try:
        with open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - _PIECE_BYTES))
            lines = file.read(_PIECE_BYTES).split(b"\n")
    except OSError:
        return
    for line in reversed(lines[:-1]):  # what follows the last line end is still being written
        with suppress(ValueError):
            value = parse_json(line, allow_nan=True)
            if isinstance(value, dict):
                yield value


def parse_json(data: bytes | str, *, allow_nan: bool = False) -> Any:
    """Parse JSON that every parser reads alike. Raises ValueError.

    Objects, arrays, Unicode text, finite numbers (with `allow_nan` NaN and Infinity as well),
    integers of 64 bits, each key once, nested 32 levels at most.
    """
    try:
        value = json.loads(
            data.decode() if isinstance(data, bytes) else data,
            object_pairs_hook=_object,
            parse_constant=float if allow_nan else _refuse_constant,
            parse_float=_finite,
            parse_int=_small_integer,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        what = other_content(data) if isinstance(data, bytes) else None
        if what is None:
            raise
        raise ValueError(f"it is {what}") from None
    _require_plain(value)
    return value


def parse_model(kind: type[T], data: bytes) -> T:
    """Parse JSON as a pydantic model or dataclass. Raises ValueError that names the first field."""
    from pydantic import TypeAdapter, ValidationError

    parse_json(data)
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "it"
    found = "" if first["type"] == "missing" else f" is {first['input']!r:.80}"
    raise ValueError(f"{where[:200]}{found}: {first['msg']}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _small_integer(text: str) -> int:
    number = int(text) if len(text) <= _LONGEST_INTEGER else 2**64
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"{text[:40]} is too large an integer")
    return number


def _require_plain(value: Any) -> None:
    """Raise ValueError for JSON that is too deep or not Unicode. Needs no recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST_LEVEL:
            raise ValueError("nested too deeply")
        level = [part for each in level for part in _parts(each)]


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, part in value.items():
            _require_text(key)
            yield part
    elif isinstance(value, list):
        yield from value
    elif isinstance(value, str):
        _require_text(value)


def _require_text(text: str) -> None:
    if _HALF_A_PAIR.search(text):
        raise ValueError("half a surrogate pair")
