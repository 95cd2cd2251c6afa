"""Writing that survives a crash, hashing, and where the cache is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

# Set for the ranks that `llmtrain` itself launches: they tell the launcher why they failed.
LAUNCHED_VARIABLE = "LLMTRAIN_LAUNCHED"
_CHUNK_BYTES = 1 << 20
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how Python represents such a byte
_ESCAPED = re.compile(r"\\x([89a-f][0-9a-f])")


class Closing:
    """A context manager that is closed at the end of its block."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def cache_directory() -> Path:
    """Return `$LLMTRAIN_CACHE_DIR`, or the platform's cache directory, without creating it."""
    chosen = os.environ.get("LLMTRAIN_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("llmtrain", appauthor=False))


def escape_names(value: Any) -> Any:
    """Return plain values with each byte of a file name that is not UTF-8 written as `\\xe9`.

    JSON and YAML can hold the result; `path_of` finds the file.
    """
    if isinstance(value, str):
        return _NOT_UTF8.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", value)
    if isinstance(value, Mapping):
        return {escape_names(key): escape_names(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape_names(each) for each in value]
    return value


def path_of(name: str) -> Path:
    """Return the path of that name, or of the one that `escape_names` wrote so."""
    path = Path(name)
    if "\\x" not in name or path.exists():
        return path
    return Path(_ESCAPED.sub(lambda match: chr(0xDC00 + int(match[1], 16)), name))


def json_key(value: object) -> str:
    """Return 32 hexadecimal digits that name `value`, which JSON can hold, in the cache."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Within the block, name `path` in errors of the system that name no file: reads and writes."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def created(directory: Path) -> Iterator[None]:
    """Create the directory and its parents for the block; remove new ones if it fails.

    What is not empty stays.
    """
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for path in new:
                path.rmdir()
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON with sorted keys, alike on every system."""
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` and sync it; on an error the file keeps its earlier content."""
    write_pieces_atomically(path, [text.encode()])


def write_pieces_atomically(path: Path, pieces: Iterable[bytes]) -> None:
    """Write `pieces` to `path` and sync it; on an error the file keeps its earlier content."""
    # With the rights that the user's other files have, unlike mkstemp's.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with named(path), temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Sync the contents of `path` to disk."""
    with named(path), path.open("rb+") as file:
        os.fsync(file.fileno())


def forget_cached(path: Path) -> None:
    """Drop `path` from the page cache, where the system has such a call."""
    if sys.platform == "win32" or sys.platform == "darwin":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def free_bytes(directory: Path) -> int:
    """Return the free bytes on the disk where `directory` is or will be, for this user."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def sync_directory(path: Path) -> None:
    """Sync names created or renamed in `path`. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with named(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of the file, read in pieces."""
    digest = hashlib.sha256()
    with named(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
