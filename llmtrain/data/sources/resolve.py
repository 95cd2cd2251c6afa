"""Resolve the sources that a user names to a corpus that can be read any number of times."""

from __future__ import annotations

import difflib
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from llmtrain.data.corpus import SUPPORTED, Corpus, Source
from llmtrain.data.corpus_stats import CorpusStatsBuilder
from llmtrain.data.document import Document, Limits, Rows, Skipped, no_text_file
from llmtrain.data.formats.registry import reason_not_to_read
from llmtrain.data.formats.streams import readable
from llmtrain.data.reading import (
    ReadOptions,
    SourceFile,
    check_file,
    read_python,
    source_file,
)
from llmtrain.data.sources.discover import (
    Found,
    found_below,
    found_matching,
    is_glob,
    library_files,
)
from llmtrain.data.sources.download import Fetched, FetchOptions, fetch
from llmtrain.data.sources.exclusions import split_role
from llmtrain.data.sources.gitignore import PathFilter, Selection
from llmtrain.data.sources.huggingface import fetch_dataset, is_dataset
from llmtrain.data.sources.stdin import is_stdin, stdin_file
from llmtrain.data.sources.urls import is_remote, without_secrets
from llmtrain.errors import DataError, UsageError
from llmtrain.files import cache_directory, path_of

BUILTIN_PYTHON = "builtin:python"


def resolve_sources(
    specs: Sequence[str],
    *,
    validation: str | None = None,
    text_field: str = "text",
    rows: Rows = "text",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    skips_bad: bool = False,
    limits: Limits | None = None,
    fetching: FetchOptions | None = None,
) -> Corpus:
    """Return the corpus that `specs` name, in that order; a file named twice counts once.

    All files that `validation` names are held out, also those that `specs` names too; then the
    validation splits of saved datasets in `specs` are not read.
    Remote files are fetched into the cache. Every file is checked: it exists and begins like text.
    `include` and `exclude` are patterns as in .gitignore, for files found in directories, globs and
    archives. `rows`: whether records have a text or a conversation. `skips_bad`: records that
    cannot be used are skipped. Raises DataError for a spec without text, UsageError without any
    spec or for an invalid pattern.
    """
    if not specs or not all(specs):
        raise UsageError("no data is given", hint="--data FILE, or --data builtin:python")
    selection = Selection(tuple(include), tuple(exclude))
    PathFilter(selection)  # an invalid pattern is an error before any search
    options = ReadOptions(text_field, selection, limits or Limits(), rows, skips_bad)
    seen: set[str] = set()
    fetching = _only_wanted(
        fetching or FetchOptions(cache_directory(), text_field, rows), selection
    )
    held_out: tuple[Source, ...] = ()
    if validation is not None:
        source = _without_repeats(_resolve(validation, options, fetching), seen)
        files = tuple(replace(file, held_out=True) for file in source.files)
        held_out = (replace(source, files=files),)
    sources = tuple(_without_repeats(_resolve(spec, options, fetching), seen) for spec in specs)
    if held_out:
        sources = tuple(map(_without_validation, sources))
    return Corpus(sources, held_out, options)


def _without_validation(source: Source) -> Source:
    """Return the source without its own validation split, which data.validation replaces."""
    reason = "a validation split, and data.validation names another"
    skipped = (Skipped(file.origin, reason) for file in source.files if file.held_out)
    files = tuple(file for file in source.files if not file.held_out)
    return replace(source, files=files, skipped=(*source.skipped, *skipped))


def _only_wanted(fetching: FetchOptions, selection: Selection) -> FetchOptions:
    """Return the options, changed to fetch no file that would be skipped by its name."""
    path_filter, before = PathFilter(selection), fetching.reason_against

    def reason_against(name: str) -> str | None:
        return before(name) or path_filter.reason_against(name) or reason_not_to_read(name)

    return replace(fetching, reason_against=reason_against)


def _without_repeats(source: Source, seen: set[str]) -> Source:
    files = []
    for file in source.files:
        identity = _identity(file)
        if identity not in seen:
            seen.add(identity)
            files.append(file)
    return replace(source, files=tuple(files))


def _identity(file: SourceFile) -> str:
    """Return the identity of a file, the same for all of its names.

    A fetched file is a link to the same file of the cache. Its address does not identify it:
    it is recorded without its query, and without the column of a dataset.
    """
    if "://" not in file.origin:
        return os.path.normcase(file.path.resolve())
    stat = file.path.stat()
    return f"{file.origin} {stat.st_dev} {stat.st_ino}"


def _resolve(spec: str, options: ReadOptions, fetching: FetchOptions) -> Source:
    if spec == BUILTIN_PYTHON and options.rows != "text":
        raise DataError(f"{spec} has no conversations", hint="--data FILE.jsonl")
    if spec == BUILTIN_PYTHON:
        return _python_library()
    if is_stdin(spec):
        return _named(spec, "stdin", stdin_file(spec), options)
    if is_remote(spec):
        return _fetched(fetch(spec, fetching), spec, options)
    if is_dataset(spec):
        return _fetched(fetch_dataset(spec, fetching), spec, options)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|builtin:", spec):
        raise DataError(
            f"{without_secrets(spec)} is not a kind of data that is supported", hint=SUPPORTED
        )
    return _resolve_here(spec, options)


def _fetched(fetched: Fetched, spec: str, options: ReadOptions) -> Source:
    """Return the fetched files as a source, named by its address."""
    here = str(fetched.path)

    def named(origin: str) -> str:
        return origin.replace(here, fetched.address, 1).replace(os.sep, "/")

    try:
        source = _resolve_here(here, options)
    except DataError as error:
        raise DataError(error.message.replace(here, fetched.address), hint=error.hint) from None
    return replace(
        source,
        spec=without_secrets(spec),
        files=tuple(replace(file, origin=named(file.origin)) for file in source.files),
        skipped=(
            *(Skipped(named(each.origin), each.reason) for each in source.skipped),
            *fetched.left_there,
        ),
        provenance=fetched.provenance,
    )


def _resolve_here(spec: str, options: ReadOptions) -> Source:
    path = _expanded(spec)
    with readable(spec):
        if path.is_dir():
            found = found_below(path, options.selection)
            return _found(spec, "directory", found, path, options)
        if path.exists():
            return _named(spec, "file", source_file(path), options)
        if is_glob(spec):
            fixed = Path(*takewhile(lambda part: not is_glob(part), path.parts))
            return _found(spec, "glob", found_matching(path, options.selection), fixed, options)
    raise _missing(spec, path)


def _expanded(spec: str) -> Path:
    try:
        return path_of(str(Path(spec).expanduser()))
    except RuntimeError:  # `~name` without such a user: it may be the name of a file
        return path_of(spec)


def _named(
    spec: str, kind: Literal["file", "stdin"], file: SourceFile, options: ReadOptions
) -> Source:
    """Return a file that the user named. Raises DataError where a found file would be skipped."""
    check = check_file(file, options, is_named=True)
    if check.has_text:
        return Source(spec, kind, (file,), check.skipped)
    if file.reading.is_archive and not any(each.origin == file.origin for each in check.skipped):
        raise DataError(
            f"archive {file.origin} has {no_text_file(check.skipped)}",
            hint=SUPPORTED,
        )
    reason = check.skipped[0].reason
    if reason == "binary":
        hint = "text has to be UTF-8; for UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        raise DataError(f"{file.origin} is binary, not text", hint=hint)
    if reason.startswith(("a ", "an ")):
        what, _, advice = reason.partition("; ")
        raise DataError(f"{file.origin} is {what}", hint=advice or SUPPORTED)
    raise DataError(f"{file.origin} cannot be used as text: {reason}", hint=SUPPORTED)


def _found(
    spec: str,
    kind: Literal["directory", "glob"],
    found: Iterable[Found],
    root: Path,
    options: ReadOptions,
) -> Source:
    files: list[SourceFile] = []
    skipped: list[Skipped] = []
    for each in found:
        if isinstance(each, Skipped):
            skipped.append(each)
            continue
        role = split_role(each, root)
        if role == "test":
            skipped.append(Skipped(str(each), "the test split of a dataset"))
            continue
        file = replace(source_file(each), held_out=role == "validation")
        check = check_file(file, options, is_named=False)
        skipped.extend(check.skipped)
        if check.has_text:
            files.append(file)
    if not files:
        raise DataError(f"{kind} {spec} has {no_text_file(skipped)}", hint=SUPPORTED)
    return Source(spec, kind, tuple(files), tuple(skipped))


def _missing(spec: str, path: Path) -> DataError:
    try:
        neighbours = [neighbour.name for neighbour in path.parent.iterdir()]
    except OSError:
        return DataError(f"{spec} does not exist, and neither does its directory", hint=SUPPORTED)
    if path.name in neighbours:
        return DataError(f"{spec} is a link that leads nowhere", hint="name what it was to lead to")
    close = difflib.get_close_matches(path.name, neighbours, n=1)
    hint = f"did you mean {path.parent / close[0]}?" if close else SUPPORTED
    return DataError(f"{spec} does not exist", hint=hint)


def _python_library() -> Source:
    files, skipped = [], []
    stats = CorpusStatsBuilder()
    for file in library_files():
        try:
            with readable(file.origin):
                text = read_python(file.path)
        except (SyntaxError, LookupError, UnicodeError):
            skipped.append(Skipped(file.origin, "undecodable"))
            continue
        files.append(file)
        if text:
            stats.add(Document(text, file.origin))
    if not files:
        message = "this Python has no standard library sources on disk"
        raise DataError(message, hint="name a text file instead: --data FILE")
    facts = stats.facts()
    version = {
        "python_version": platform.python_version(),
        "text_bytes": facts.text_bytes,
        "sha256": facts.fingerprint,
    }
    return Source(BUILTIN_PYTHON, "builtin", tuple(files), tuple(skipped), version)
