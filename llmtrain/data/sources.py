"""From what the user names as data to a corpus that can be read any number of times."""

from __future__ import annotations

import difflib
import hashlib
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from llmtrain.data.addresses import is_remote, shown
from llmtrain.data.document import Document, Limits, Skipped
from llmtrain.data.finding import Found, found_below, found_matching, is_glob, library_files
from llmtrain.data.formats.naming import reason_not_to_read
from llmtrain.data.formats.streams import readable
from llmtrain.data.hub import fetch_dataset, is_dataset
from llmtrain.data.left_out import LeftOut
from llmtrain.data.reading import (
    Question,
    SourceFile,
    look_at,
    read_documents,
    read_python,
    source_file,
)
from llmtrain.data.remote import Fetched, Fetching, fetch
from llmtrain.data.repeats import Repeats
from llmtrain.data.selection import Selection, Sieve
from llmtrain.data.stdin import is_stdin, stdin_file
from llmtrain.errors import DataError, UsageError
from llmtrain.files import cache_directory

BUILTIN_PYTHON = "builtin:python"
_SUPPORTED = (
    "data can be a text file, .jsonl, .json, .csv, .tsv, .parquet, .arrow or .feather, packed as "
    ".gz, .bz2, .xz or .zst, a .zip or .tar of such, a directory, a glob, one of these at s3:// or "
    "https://, hf://OWNER/NAME, - for standard input (-.jsonl where it is not plain text), or "
    "builtin:python"
)


@dataclass(frozen=True, slots=True)
class PythonLibrary:
    """Which standard library it was: enough to tell two of them apart."""

    version: str
    text_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """The files that one spec stands for, without those that an earlier spec already named.

    `provenance`: of what was brought from elsewhere, which version it is, ready for JSON.
    """

    spec: str
    kind: Literal["file", "directory", "glob", "stdin", "builtin"]
    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...] = ()
    library: PythonLibrary | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """What one pass over a corpus tells. The digests are of single documents."""

    documents: int
    text_bytes: int
    fingerprint: str
    lowest_digest: bytes
    highest_digest: bytes
    repeated_documents: int = 0  # that are equal to an earlier one
    repeated_bytes: int = 0  # of their text


def _go_on() -> None:
    """Never asks to stop."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in a fixed order. Holds names of files, never their text."""

    sources: tuple[Source, ...]
    question: Question = field(default_factory=Question)
    first: int | None = None  # only so many documents, counted with those that are left out
    left_out: LeftOut | None = None  # by `llmtrain.data.cleaning`

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(skipped for source in self.sources for skipped in source.skipped)

    def documents(self, on_source: Callable[[], None] = _go_on) -> Iterator[Document]:
        """Every document that is not empty or left out, one file in memory at a time.

        `on_source` is called where each source begins, when all before it are taken. Raises
        DataError.
        """
        documents = islice(self._all_documents(on_source), self.first)
        return documents if self.left_out is None else self.left_out.without(documents)

    def _all_documents(self, on_source: Callable[[], None]) -> Iterator[Document]:
        for source in self.sources:
            on_source()
            for file in source.files:
                yield from read_documents(file, self.question)

    def fingerprint(self) -> str:
        """See `FingerprintBuilder`. Reads the whole corpus."""
        return self.measure().fingerprint

    def measure(self, check_stop: Callable[[], None] = _go_on) -> CorpusFacts:
        """Sizes and fingerprint, from reading all of it. Raises DataError if there is no text."""
        gauge = Gauge()
        for document in self.documents():
            check_stop()
            gauge.add(document)
        return self.facts(gauge)

    def facts(self, gauge: Gauge) -> CorpusFacts:
        """What a gauge that saw every document tells. Raises DataError if there was no text."""
        if not gauge.documents:
            specs = ", ".join(source.spec for source in self.sources)
            raise DataError(f"there is no text in {specs}: every file is empty", hint=_SUPPORTED)
        return gauge.facts()

    def describe(self) -> list[dict[str, object]]:
        """One record a source, ready for JSON, without reading the text again."""
        return [_describe(source) for source in self.sources]


class FingerprintBuilder:
    """sha256 over the sha256 of every document, in order.

    It depends on the text and where documents end, not on paths, times or compression, so the
    same text has the same fingerprint on every machine.
    """

    def __init__(self) -> None:
        self.documents = 0
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> bytes:
        """The document's own digest, which is now part of the fingerprint."""
        digest = document.digest()
        self._digest.update(digest)
        self.documents += 1
        return digest

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class Gauge:
    """Measures documents as they pass."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self.repeats = Repeats()
        self._fingerprint = FingerprintBuilder()
        self._lowest, self._highest = b"\xff" * 32, b""

    @property
    def documents(self) -> int:
        return self._fingerprint.documents

    def add(self, document: Document) -> int:
        """The size of its text in bytes; it is measured."""
        digest = self._fingerprint.add(document)
        size_bytes = len(document.text.encode())
        self.repeats.add(digest, size_bytes)
        self.text_bytes += size_bytes
        self._lowest, self._highest = min(self._lowest, digest), max(self._highest, digest)
        return size_bytes

    def facts(self) -> CorpusFacts:
        """Of all that passed."""
        repeated = self.repeats.flags()
        return CorpusFacts(
            documents=self.documents,
            text_bytes=self.text_bytes,
            fingerprint=self._fingerprint.hexdigest(),
            lowest_digest=self._lowest,
            highest_digest=self._highest,
            repeated_documents=int(repeated.sum()),
            repeated_bytes=int(self.repeats.sizes_bytes()[repeated].sum()),
        )


def _describe(source: Source) -> dict[str, object]:
    record: dict[str, object] = {
        "spec": source.spec,
        "kind": source.kind,
        "files": len(source.files),
        "skipped": dict(sorted(Counter(skipped.reason for skipped in source.skipped).items())),
    }
    if source.library is not None:
        record["python_version"] = source.library.version
        record["text_bytes"] = source.library.text_bytes
        record["sha256"] = source.library.sha256
    return record | dict(source.provenance)


def resolve_sources(
    specs: Sequence[str],
    *,
    text_field: str = "text",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    fetching: Fetching | None = None,
) -> Corpus:
    """The corpus that `specs` name, in that order; a file named twice counts once.

    What lies elsewhere is in the cache afterwards. Every file is known to exist and to look like
    text. `include` and `exclude` are patterns as in .gitignore, of what is found in directories,
    globs and archives. Raises DataError for a spec that stands for no text, UsageError where there
    is no spec, or for what is no pattern.
    """
    if not specs or not all(specs):
        raise UsageError("no data is given", hint="--data FILE, or --data builtin:python")
    selection = Selection(tuple(include), tuple(exclude))
    Sieve(selection)  # what is no pattern is told before anything is looked for
    question = Question(text_field, selection, limits or Limits())
    seen: set[str] = set()
    fetching = _only_wanted(fetching or Fetching(cache_directory(), text_field), selection)
    sources = tuple(_without_repeats(_resolve(spec, question, fetching), seen) for spec in specs)
    return Corpus(sources, question)


def _only_wanted(fetching: Fetching, selection: Selection) -> Fetching:
    """The same, for files whose names do not say already that they would not be read."""
    sieve, before = Sieve(selection), fetching.reason_against

    def reason_against(name: str) -> str | None:
        return before(name) or sieve.reason_against(name) or reason_not_to_read(name)

    return replace(fetching, reason_against=reason_against)


def _without_repeats(source: Source, seen: set[str]) -> Source:
    files = []
    for file in source.files:
        is_here = "://" not in file.origin
        identity = os.path.normcase(file.path.resolve()) if is_here else file.origin
        if identity not in seen:
            seen.add(identity)
            files.append(file)
    return replace(source, files=tuple(files))


def _resolve(spec: str, question: Question, fetching: Fetching) -> Source:
    if spec == BUILTIN_PYTHON:
        return _python_library()
    if is_stdin(spec):
        return _named(spec, "stdin", stdin_file(spec), question)
    if is_remote(spec):
        return _fetched(fetch(spec, fetching), spec, question)
    if is_dataset(spec):
        return _fetched(fetch_dataset(spec, fetching), spec, question)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|builtin:", spec):
        raise DataError(f"{shown(spec)} is not a kind of data that is supported", hint=_SUPPORTED)
    return _resolve_here(spec, question)


def _fetched(fetched: Fetched, spec: str, question: Question) -> Source:
    """What was brought here, read as files are and named as it was where it came from."""
    here = str(fetched.path)

    def named(origin: str) -> str:
        return origin.replace(here, fetched.address, 1).replace(os.sep, "/")

    try:
        source = _resolve_here(here, question)
    except DataError as error:
        raise DataError(error.message.replace(here, fetched.address), hint=error.hint) from None
    return replace(
        source,
        spec=shown(spec),
        files=tuple(replace(file, origin=named(file.origin)) for file in source.files),
        skipped=(
            *(Skipped(named(each.origin), each.reason) for each in source.skipped),
            *(Skipped(origin, reason) for origin, reason in fetched.left_there),
        ),
        provenance=fetched.provenance,
    )


def _resolve_here(spec: str, question: Question) -> Source:
    path = _expanded(spec)
    with readable(spec):
        if path.is_dir():
            return _found(spec, "directory", found_below(path, question.selection), question)
        if path.exists():
            return _named(spec, "file", source_file(path), question)
        if is_glob(spec):
            return _found(spec, "glob", found_matching(path, question.selection), question)
    raise _missing(spec, path)


def _expanded(spec: str) -> Path:
    try:
        return Path(spec).expanduser()
    except RuntimeError:  # `~name` where there is no such user: a file may be called that
        return Path(spec)


def _named(
    spec: str, kind: Literal["file", "stdin"], file: SourceFile, question: Question
) -> Source:
    """A file that the user named outright, where skipping it silently would be wrong."""
    look = look_at(file, question, is_named=True)
    if look.has_text:
        return Source(spec, kind, (file,), look.skipped)
    if file.reading.is_archive and not any(each.origin == file.origin for each in look.skipped):
        raise DataError(f"archive {file.origin} has {_no_text(look.skipped)}", hint=_SUPPORTED)
    reason = look.skipped[0].reason
    if reason == "binary":
        hint = "text has to be UTF-8; for UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        raise DataError(f"{file.origin} is binary, not text", hint=hint)
    raise DataError(f"{file.origin} cannot be used as text: {reason}", hint=_SUPPORTED)


def _found(
    spec: str, kind: Literal["directory", "glob"], found: Iterable[Found], question: Question
) -> Source:
    files: list[SourceFile] = []
    skipped: list[Skipped] = []
    for each in found:
        if isinstance(each, Skipped):
            skipped.append(each)
            continue
        file = source_file(each)
        look = look_at(file, question, is_named=False)
        skipped.extend(look.skipped)
        if look.has_text:
            files.append(file)
    if not files:
        raise DataError(f"{kind} {spec} has {_no_text(skipped)}", hint=_SUPPORTED)
    return Source(spec, kind, tuple(files), tuple(skipped))


def _no_text(skipped: Iterable[Skipped]) -> str:
    counts = Counter(each.reason for each in skipped)
    why = "; ".join(f"{count} skipped: {reason}" for reason, count in counts.items())
    return "no text file" + (f" ({why})" if why else "")


def _missing(spec: str, path: Path) -> DataError:
    try:
        neighbours = [neighbour.name for neighbour in path.parent.iterdir()]
    except OSError:
        return DataError(f"{spec} does not exist, and neither does its directory", hint=_SUPPORTED)
    close = difflib.get_close_matches(path.name, neighbours, n=1)
    hint = f"did you mean {path.parent / close[0]}?" if close else _SUPPORTED
    return DataError(f"{spec} does not exist", hint=hint)


def _python_library() -> Source:
    files, skipped = [], []
    builder, text_bytes = FingerprintBuilder(), 0
    for file in library_files():
        try:
            with readable(file.origin):
                text = read_python(file.path)
        except (SyntaxError, LookupError, UnicodeError):
            skipped.append(Skipped(file.origin, "undecodable"))
            continue
        files.append(file)
        if text:
            builder.add(Document(text, file.origin))
            text_bytes += len(text.encode())
    if not files:
        message = "this Python has no standard library sources on disk"
        raise DataError(message, hint="name a text file instead: --data FILE")
    library = PythonLibrary(platform.python_version(), text_bytes, builder.hexdigest())
    return Source(BUILTIN_PYTHON, "builtin", tuple(files), tuple(skipped), library)
