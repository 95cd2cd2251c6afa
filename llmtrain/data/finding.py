"""Which files a directory, a glob or the standard library stands for, alike on every platform."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from llmtrain.data.reading import SourceFile, read_head, readable

# Suffixes of things that are not text although they may begin without a NUL byte.
_BINARY_SUFFIXES = frozenset(
    f".{name}"
    for names in (
        "7z a bz2 jar rar tar tgz whl xz zip",
        "avi bmp flac gif ico jpeg jpg mkv mov mp3 mp4 ogg png tif tiff wav webm webp",
        "bin class db dll dylib exe o obj pyc pyd pyo so sqlite sqlite3 wasm",
        "ckpt gguf h5 hdf5 npy npz onnx pickle pkl pt pth safetensors",
        "doc docx eot otf pdf ppt pptx ttf woff woff2 xls xlsx",
    )
    for name in names.split()
)
_UNSUPPORTED_SUFFIXES = frozenset({".arrow", ".parquet", ".zst"})
_GLOB_CHARACTERS = frozenset("*?[")
_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})


def source_file(path: Path) -> SourceFile:
    """How `path` is to be read, judged by its name."""
    is_gzip = path.suffix.lower() == ".gz"
    is_json_lines = _inner_suffix(path) == ".jsonl"
    return SourceFile(path, str(path), "jsonl" if is_json_lines else "text", is_gzip)


def reason_to_skip(file: SourceFile) -> str | None:
    """Why `file` holds no text that can be read; None if it does."""
    suffix = _inner_suffix(file.path)
    if not file.path.is_file():
        return "not a regular file"
    if suffix in _UNSUPPORTED_SUFFIXES:
        return "unsupported format"
    if suffix in _BINARY_SUFFIXES or b"\0" in read_head(file):
        return "binary"
    return None


def _inner_suffix(path: Path) -> str:
    """The suffix without a final `.gz`, in lower case."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def is_glob(spec: str) -> bool:
    """`spec` has a character that stands for others."""
    return not _GLOB_CHARACTERS.isdisjoint(spec)


def files_below(directory: Path) -> Iterator[Path]:
    """Every file that is not hidden, ordered by the parts of its name.

    Links to directories are not followed, so a cycle of links ends.
    """
    for entry in _visible(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path))
        elif not _leads_to_directory(entry):
            yield Path(entry.path)


def files_matching(pattern: Path) -> list[Path]:
    """Every file that the glob names, in order.

    `**` stands for any number of directories. A directory that matches stands for all files below
    it, as it does when a shell expands the glob.
    """
    # A second `**` in a row adds nothing but ways to find the same file, exponentially many.
    before = ("", *pattern.parts)
    parts = [p for p, last in zip(pattern.parts, before, strict=False) if (p, last) != ("**", "**")]
    fixed = next(index for index, part in enumerate(parts) if is_glob(part))
    found = set(_matches(Path(*parts[:fixed]), parts[fixed:]))
    return sorted(found, key=lambda path: path.parts)


def _matches(directory: Path, segments: Sequence[str]) -> Iterator[Path]:
    if not segments:
        yield from files_below(directory)
        return
    head, rest = segments[0], segments[1:]
    if head == "**":
        yield from _matches(directory, rest)
    for entry in _visible(directory, even_hidden=head.startswith(".")):
        if entry.is_dir(follow_symlinks=False):
            if head == "**":
                yield from _matches(Path(entry.path), segments)
            elif fnmatchcase(entry.name, head):
                yield from _matches(Path(entry.path), rest)
        elif not rest and not _leads_to_directory(entry) and fnmatchcase(entry.name, head):
            yield Path(entry.path)


def _leads_to_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, which is no regular file either
        return False


def _visible(directory: Path, *, even_hidden: bool = False) -> list[os.DirEntry[str]]:
    """Sorted by code point: a locale or a case-blind file system must not change the order."""
    if not directory.is_dir():
        return []
    with readable(str(directory)), os.scandir(directory) as entries:
        chosen = [entry for entry in entries if even_hidden or not entry.name.startswith(".")]
    return sorted(chosen, key=lambda entry: entry.name)


def library_files() -> list[SourceFile]:
    """The `.py` files of the running interpreter's own standard library, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    names = (path.relative_to(root) for path in files_below(root) if path.suffix == ".py")
    return [
        SourceFile(root / name, f"builtin:python/{name.as_posix()}", "python")
        for name in names
        if _NOT_THE_LIBRARY.isdisjoint(name.parts)
    ]
