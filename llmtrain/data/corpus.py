"""A corpus: sources of text that can be read any number of times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

from llmtrain.data.corpus_stats import CorpusStats, CorpusStatsBuilder
from llmtrain.data.document import Document, Skipped
from llmtrain.data.quality.dropped import DroppedDocuments
from llmtrain.data.read_progress import OnRead, ReadProgress
from llmtrain.data.reading import OnBad, ReadOptions, SourceFile, read_documents
from llmtrain.errors import DataError

SUPPORTED = (
    "data can be a text file, .jsonl, .json, .csv, .tsv, .parquet, .arrow or .feather, packed as "
    ".gz, .bz2, .xz or .zst, a .zip or .tar of such, a directory, a glob, one of these at s3:// or "
    "https://, hf://OWNER/NAME, - for standard input (-.jsonl where it is not plain text), or "
    "builtin:python"
)


@dataclass(frozen=True, slots=True)
class Source:
    """The files that one spec names, without those that an earlier spec already named.

    `provenance`: the version of fetched files, or of the standard library, ready for JSON.
    """

    spec: str
    kind: Literal["file", "directory", "glob", "stdin", "builtin"]
    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)


def _do_nothing() -> None:
    """Do nothing, where nobody is to be called."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in a fixed order. It holds names of files, never their text.

    Those of `validation` come last. If there are any, or files of a source are held out, they
    are all of the validation part; otherwise it is split off (see `plan_split`).
    """

    sources: tuple[Source, ...]
    validation: tuple[Source, ...] = ()
    options: ReadOptions = field(default_factory=ReadOptions)
    first: int | None = None  # only so many documents, counting those that are dropped
    dropped: DroppedDocuments | None = None  # by `llmtrain.data.quality.clean`
    on_read: OnRead | None = field(default=None, compare=False)

    @property
    def all_sources(self) -> tuple[Source, ...]:
        return (*self.sources, *self.validation)

    @property
    def has_validation(self) -> bool:
        """True if files are held out as validation text."""
        return any(file.held_out for source in self.all_sources for file in source.files)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(skipped for source in self.all_sources for skipped in source.skipped)

    @property
    def skipped_by_reason(self) -> dict[str, int]:
        """The number of skipped files by reason, the most frequent reason first."""
        return dict(Counter(skipped.reason for skipped in self.skipped).most_common())

    def counting(self, on_bad: OnBad) -> Corpus:
        """Return the corpus so that `on_bad` is called for each bad record that is skipped."""
        return replace(self, options=replace(self.options, on_bad=on_bad))

    def documents(self, on_source: Callable[[], None] = _do_nothing) -> Iterator[Document]:
        """Yield every document that is not empty or dropped, one file in memory at a time.

        `on_source` is called where each of `sources` begins, after all documents before it. Raises
        DataError.
        """
        documents = islice(self._all_documents(on_source), self.first)
        return documents if self.dropped is None else self.dropped.filter(documents)

    def _all_documents(self, on_source: Callable[[], None]) -> Iterator[Document]:
        paths = [file.path for source in self.all_sources for file in source.files]
        progress = ReadProgress(paths, self.on_read)
        for index, source in enumerate(self.all_sources):
            if index < len(self.sources):
                on_source()
            for file in source.files:
                yield from read_documents(file, self.options, progress.report)
                progress.next_file()

    def measure(self, check_stop: Callable[[], None] = _do_nothing) -> CorpusStats:
        """Return sizes and fingerprint. Reads the whole corpus; raises DataError if it is empty."""
        stats = CorpusStatsBuilder()
        for document in self.documents():
            check_stop()
            stats.add(document)
        return self.facts(stats)

    def facts(self, stats: CorpusStatsBuilder) -> CorpusStats:
        """Return the statistics that `stats` counted. Raises DataError without documents."""
        if not stats.documents:
            specs = ", ".join(source.spec for source in self.sources)
            raise DataError(f"there is no text in {specs}: every file is empty", hint=SUPPORTED)
        return stats.facts()

    def describe(self) -> list[dict[str, object]]:
        """Return one record a source, ready for JSON, without reading the text again."""
        return [_describe(source) for source in self.all_sources]


def _describe(source: Source) -> dict[str, object]:
    record: dict[str, object] = {
        "spec": source.spec,
        "kind": source.kind,
        "files": len(source.files),
        "skipped": dict(sorted(Counter(skipped.reason for skipped in source.skipped).items())),
    }
    if held_out := sum(file.held_out for file in source.files):
        record["validation_files"] = held_out
    return record | dict(source.provenance)
