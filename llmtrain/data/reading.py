"""Read the documents of one file. Any defect of the file is a DataError that names the place."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias, cast

from llmtrain.data.document import (
    LONGEST_BYTES,
    Document,
    Limits,
    NoRecordsError,
    RecordOptions,
    Rows,
    Skipped,
)
from llmtrain.data.formats.archives import Member
from llmtrain.data.formats.compression import CODECS, unpacked
from llmtrain.data.formats.registry import (
    ARCHIVES,
    FORMATS,
    FileFormat,
    Format,
    reading_of,
    reason_not_to_read,
)
from llmtrain.data.formats.streams import CheckedStream, UnpackedMeter, head_of, readable
from llmtrain.data.formats.text import decode_python
from llmtrain.data.sources.exclusions import reason_against_name
from llmtrain.data.sources.gitignore import PathFilter, Selection
from llmtrain.errors import DataError
from llmtrain.magic import LFS_POINTER, content_kind, is_lfs_pointer, reason_against_content
from llmtrain.untrusted import open_regular, read_bytes

OnBad: TypeAlias = Callable[[DataError], None]
# What the first bytes tell apart: a packing, or a kind that is no text.
_PACKED = {
    **{suffix: codec.name for suffix, codec in CODECS.items()},
    **{f".{kind}": f"{kind} file" for kind in ("zip", "tar", "parquet", "arrow")},
}
_RECORDS_TO_CHECK = 1000  # before the error that a file has no record with the text field


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of documents, or an archive of such files. `origin` is its name in messages."""

    path: Path
    origin: str
    reading: FileFormat
    held_out: bool = False  # for validation, all of it


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading every file of a corpus."""

    text_field: str = "text"
    selection: Selection = field(default_factory=Selection)
    limits: Limits = field(default_factory=Limits)
    rows: Rows = "text"
    skips_bad: bool = False  # records that cannot be used, instead of an error
    on_bad: OnBad | None = field(default=None, compare=False)  # called for each skipped record

    @property
    def record_options(self) -> RecordOptions:
        on_bad = (self.on_bad or (lambda error: None)) if self.skips_bad else None
        return RecordOptions(self.text_field, self.rows, self.limits.longest_bytes, on_bad)


@dataclass(frozen=True, slots=True)
class FileCheck:
    """The result of checking a file before its text is read."""

    has_text: bool
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """An open text: a file, or a member of an archive."""

    origin: str
    format: Format
    stream: io.BufferedReader
    file: io.BufferedReader  # in which it is


def source_file(path: Path, origin: str | None = None) -> SourceFile:
    """Return the file with the format of its name."""
    return SourceFile(path, origin or str(path), reading_of(path.name))


def read_documents(
    file: SourceFile, options: ReadOptions, at: Callable[[int], None]
) -> Iterator[Document]:
    """Yield the documents in `file`, in order, without empty ones.

    A text of 32 MiB or more is several documents, each a part of it. `at` is called before each
    with the position in the file, in bytes.
    """
    for entry in _entries(file, options):
        if isinstance(entry, _Entry):
            documents = _documents(entry, options, is_member=file.reading.is_archive)
            for document in documents:
                at(entry.file.tell())
                if document.text:
                    yield replace(document, held_out=True) if file.held_out else document
        elif entry.origin == file.origin:
            raise DataError(f"{file.origin} cannot be used as text any more: {entry.reason}")


def _documents(entry: _Entry, options: ReadOptions, *, is_member: bool) -> Iterator[Document]:
    """Return all documents; read the first now, so that NoRecordsError is raised at once."""
    documents = entry.format.read(entry.stream, entry.origin, options.record_options)
    try:
        first = list(islice(documents, 1))
    except NoRecordsError:
        if is_member:
            return iter(())  # as `check_file` decided
        raise
    return chain(first, documents)


def check_file(file: SourceFile, options: ReadOptions, *, is_named: bool) -> FileCheck:
    """Check whether `file` holds text, and which members do not. Raises DataError for damage.

    If it `is_named`, records without the text field are an error; else they are skipped.
    """
    reason = reason_not_to_read(file.path.name)
    if not file.path.is_file():
        reason = "not a regular file"
    if reason is not None:
        return FileCheck(has_text=False, skipped=(Skipped(file.origin, reason),))
    has_text, skipped = False, []
    for entry in _entries(file, options):
        is_strict = is_named and not file.reading.is_archive
        checked = _checked(entry, options, is_strict=is_strict)
        if isinstance(checked, Skipped):
            skipped.append(checked)
        else:
            has_text = True
    return FileCheck(has_text, tuple(skipped))


def _checked(entry: _Entry | Skipped, options: ReadOptions, *, is_strict: bool) -> _Entry | Skipped:
    if isinstance(entry, Skipped):
        return entry
    if not entry.format.has_records:
        if options.rows == "text":
            return entry
        if not is_strict:
            return Skipped(entry.origin, "no rows with conversations")
        raise DataError(
            f"{entry.origin} is plain text, and conversations are in rows",
            hint="name a .jsonl, .json, .parquet, .arrow or .csv with --data",
        )
    bad: list[DataError] = []

    def add(error: DataError) -> None:
        bad.append(error)
        if len(bad) >= _RECORDS_TO_CHECK:
            raise NoRecordsError(bad[0].message, reason="no record with text", hint=bad[0].hint)

    asked = replace(options.record_options, on_bad=add)
    try:
        first = next(entry.format.read(entry.stream, entry.origin, asked), None)
    except DataError as error:
        first, bad = None, bad or [error]
    if not bad or (first is not None and options.skips_bad):
        return entry
    if first is None and not is_strict:
        if isinstance(bad[0], NoRecordsError):
            return Skipped(entry.origin, bad[0].reason)
        if options.skips_bad:
            return Skipped(entry.origin, "no record that can be used")
    raise bad[0]


def _entries(file: SourceFile, options: ReadOptions) -> Iterator[_Entry | Skipped]:
    """Yield the entries of the file, each open until the next is requested."""
    with readable(file.origin):
        raw = cast("io.BufferedReader", open_regular(file.path, follow_links=True))
    with raw:
        with readable(file.origin):
            head = head_of(raw)
        if is_lfs_pointer(head):
            yield Skipped(file.origin, LFS_POINTER)
            return
        _require_packing(file, head)
        packed_bytes = os.fstat(raw.fileno()).st_size
        meter = UnpackedMeter(file.origin, packed_bytes, options.limits)
        with _content(raw, file, packed_bytes, meter) as stream:
            if not file.reading.is_archive:
                yield _entry(stream, file.origin, file.reading.kind, raw)
                return
            path_filter = PathFilter(options.selection)
            for member in ARCHIVES[file.reading.kind].members(stream, file.origin, meter):
                yield from _member(member, file.origin, path_filter, meter, raw)


def _require_packing(file: SourceFile, head: bytes) -> None:
    """Raise DataError if a packed file is text or packed in another way than its name says."""
    expected = file.reading.packing or f".{file.reading.kind}"
    found = content_kind(head)
    if expected not in _PACKED or found is None or found[1] == expected:
        return
    what, suffix = found
    raise DataError(
        f"{file.origin} is not a complete {_PACKED[expected]}: it is {what}",
        hint=f"rename it to end in {suffix}" if suffix else f"rename it without {expected}",
    )


@contextmanager
def _content(
    raw: io.BufferedReader, file: SourceFile, packed_bytes: int, meter: UnpackedMeter
) -> Iterator[io.BufferedReader]:
    """Yield the content of the file, unpacked."""
    if file.reading.seeks:
        yield raw
        return
    checked = CheckedStream(raw, file.origin, size_bytes=packed_bytes)
    with unpacked(checked.buffered(), file.reading.packing, file.origin, meter) as stream:
        yield stream


def _member(
    member: Member,
    archive: str,
    path_filter: PathFilter,
    meter: UnpackedMeter,
    file: io.BufferedReader,
) -> Iterator[_Entry | Skipped]:
    name = member.name.removeprefix("./")
    origin = f"{archive}!{name}"
    parts = name.split("/")
    if member.problem is None and any(part.startswith(".") for part in parts):
        return  # hidden, as in a directory
    excluded = next(filter(None, map(reason_against_name, parts[:-1])), None)
    reason = (
        member.problem
        or excluded
        or path_filter.reason_against(name)
        or reason_not_to_read(name, inside=True)
    )
    if reason is not None:
        yield Skipped(origin, reason)
        return
    reading = reading_of(name)
    with member.open() as packed, unpacked(packed, reading.packing, origin, meter) as stream:
        yield _entry(stream, origin, reading.kind, file)


def _entry(
    stream: io.BufferedReader, origin: str, kind: str, file: io.BufferedReader
) -> _Entry | Skipped:
    form, head = FORMATS[kind], head_of(stream)
    if is_lfs_pointer(head):
        return Skipped(origin, LFS_POINTER)
    if form.refuses_nul and (reason := reason_against_content(head)) is not None:
        return Skipped(origin, reason)
    if form.refuses_nul and b"\0" in head:
        return Skipped(origin, "binary")
    return _Entry(origin, form, stream, file)


def read_python(path: Path) -> str:
    """Read a file of the standard library. Raises what `decode_python` raises, and OSError."""
    return decode_python(read_bytes(path, LONGEST_BYTES, follow_links=True))
