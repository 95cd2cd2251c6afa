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
from llmtrain.data.finding import (
    files_below,
    files_matching,
    is_glob,
    library_files,
    reason_to_skip,
    source_file,
)
from llmtrain.data.hub import fetch_dataset, is_dataset
from llmtrain.data.left_out import LeftOut
from llmtrain.data.reading import Document, SourceFile, read_documents, read_python, readable
from llmtrain.data.remote import Fetched, Fetching, fetch
from llmtrain.data.repeats import Repeats
from llmtrain.errors import DataError, UsageError
from llmtrain.files import cache_directory

BUILTIN_PYTHON = "builtin:python"
_SUPPORTED = (
    "data can be a text file, .jsonl, either as .gz, a directory, a glob, one of these at s3:// or "
    "https://, hf://OWNER/NAME, or builtin:python"
)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was found and is not read."""

    origin: str
    reason: str


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
    kind: Literal["file", "directory", "glob", "builtin"]
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
    text_field: str = "text"
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
                yield from read_documents(file, self.text_field)

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
    specs: Sequence[str], *, text_field: str = "text", fetching: Fetching | None = None
) -> Corpus:
    """The corpus that `specs` name, in that order; a file named twice counts once.

    What lies elsewhere is in the cache afterwards. Every file is known to exist and to look like
    text. Raises DataError for a spec that stands for no text, UsageError where there is no spec.
    """
    if not specs or not all(specs):
        raise UsageError("no data is given", hint="--data FILE, or --data builtin:python")
    seen: set[str] = set()
    fetching = fetching or Fetching(cache_directory(), text_field)
    sources = tuple(_without_repeats(_resolve(spec, fetching), seen) for spec in specs)
    return Corpus(sources, text_field)


def _without_repeats(source: Source, seen: set[str]) -> Source:
    files = []
    for file in source.files:
        is_here = "://" not in file.origin
        identity = os.path.normcase(file.path.resolve()) if is_here else file.origin
        if identity not in seen:
            seen.add(identity)
            files.append(file)
    return replace(source, files=tuple(files))


def _resolve(spec: str, fetching: Fetching) -> Source:
    if spec == BUILTIN_PYTHON:
        return _python_library()
    if is_remote(spec):
        return _fetched(fetch(spec, fetching), spec)
    if is_dataset(spec):
        return _fetched(fetch_dataset(spec, fetching), spec)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|builtin:", spec):
        raise DataError(f"{shown(spec)} is not a kind of data that is supported", hint=_SUPPORTED)
    return _resolve_here(spec)


def _fetched(fetched: Fetched, spec: str) -> Source:
    """What was brought here, read as files are and named as it was where it came from."""
    here = str(fetched.path)

    def named(origin: str) -> str:
        return origin.replace(here, fetched.address, 1).replace(os.sep, "/")

    try:
        source = _resolve_here(here)
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


def _resolve_here(spec: str) -> Source:
    path = _expanded(spec)
    with readable(spec):
        if path.is_dir():
            return _found(spec, "directory", files_below(path))
        if path.exists():
            return Source(spec, "file", (_named_file(path),))
        if is_glob(spec):
            return _found(spec, "glob", files_matching(path))
    raise _missing(spec, path)


def _expanded(spec: str) -> Path:
    try:
        return Path(spec).expanduser()
    except RuntimeError:  # `~name` where there is no such user: a file may be called that
        return Path(spec)


def _named_file(path: Path) -> SourceFile:
    """A file that the user named outright, where skipping it silently would be wrong."""
    file = source_file(path)
    reason = reason_to_skip(file)
    if reason == "binary":
        hint = "text has to be UTF-8; for UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        raise DataError(f"{path} is binary, not text", hint=hint)
    if reason is not None:
        raise DataError(f"{path} cannot be used as text: {reason}", hint=_SUPPORTED)
    return file


def _found(spec: str, kind: Literal["directory", "glob"], paths: Iterable[Path]) -> Source:
    files, skipped = [], []
    for file in map(source_file, paths):
        reason = reason_to_skip(file)
        if reason is None:
            files.append(file)
        else:
            skipped.append(Skipped(file.origin, reason))
    if not files:
        counts = Counter(each.reason for each in skipped)
        why = "; ".join(f"{count} skipped: {reason}" for reason, count in counts.items())
        raise DataError(
            f"{kind} {spec} has no text file" + (f" ({why})" if why else ""), hint=_SUPPORTED
        )
    return Source(spec, kind, tuple(files), tuple(skipped))


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
