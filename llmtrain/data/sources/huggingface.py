"""`hf://DATASET[/CONFIG][:SPLIT][#COLUMN]`: a dataset's texts, in a `.jsonl` of the cache.

    <cache>/remote/datasets/<key>/documents.jsonl    one row a line, with only its text
                                  facts.json         the number of rows, and of those without text

DATASET is `owner/name`, `name`, or a directory that begins with `/`, `.` or `~`. The key has the
dataset's revision, so each revision is read once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmtrain.data.chat.rows import COLUMNS
from llmtrain.data.shards.cache_entry import building_directory, map_write_errors, publish
from llmtrain.data.sources.download import Fetched, FetchOptions
from llmtrain.data.sources.urls import describe_error, map_errors, without_secrets
from llmtrain.errors import DataError
from llmtrain.files import json_key, sync_file
from llmtrain.untrusted import problem_of, read_json

_SCHEME = "hf://"
_NAMES = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")
_SPLIT = re.compile(r":([\w.-]+)$")
_HERE = re.compile(r"[/.~\\]|[A-Za-z]:[/\\]")
_NOTATION = "write hf://OWNER/NAME, hf://OWNER/NAME/CONFIG:SPLIT#COLUMN, or hf:///a/directory"
_ROWS_BETWEEN_LOOKS = 256


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """A parsed spec. `column` None: the text field of all other formats."""

    dataset: str
    config: str | None
    split: str
    column: str | None

    @property
    def is_here(self) -> bool:
        """True if the dataset is a local directory."""
        return _HERE.match(self.dataset) is not None


class _Rows(Protocol):
    """The interface of a streaming dataset, as far as it is used."""

    column_names: list[str] | None

    def select_columns(self, column_names: str) -> _Rows: ...
    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...


def is_dataset(spec: str) -> bool:
    """Return whether `spec` begins with `hf://`."""
    return spec.lower().startswith(_SCHEME)


def parse_dataset_spec(spec: str) -> DatasetSpec:
    """Return the parts of a spec. Raises DataError."""
    rest, mark, column = spec[len(_SCHEME) :].partition("#")
    match = _SPLIT.search(rest)
    dataset, split = (rest[: match.start()], match[1]) if match else (rest, "train")
    if _HERE.match(dataset):
        return DatasetSpec(dataset, None, split, column or None)
    if _NAMES.fullmatch(dataset) is None or (mark and not column):
        raise DataError(f"{without_secrets(spec)} does not name a dataset", hint=_NOTATION)
    owner, _, rest = dataset.partition("/")
    name, _, config = rest.partition("/")
    return DatasetSpec(f"{owner}/{name}" if name else owner, config or None, split, column or None)


def fetch_dataset(spec: str, work: FetchOptions) -> Fetched:
    """Fetch the texts of a dataset into the cache. Raises DataError.

    Rows are read one at a time; those without a text are counted.
    """
    asked = parse_dataset_spec(spec)
    column = asked.column or work.text_field
    _require_library(spec)
    with map_errors(spec, _data_error):
        revision = _revision(asked)
    parts = [asked.dataset, asked.config, asked.split, column, work.text_field, revision]
    parts += COLUMNS if work.rows != "text" else []
    entry = work.cache / "remote" / "datasets" / json_key(parts)
    if not entry.is_dir():
        what = f"the texts of {spec}"
        with map_write_errors(entry.parent, what), building_directory(entry.parent) as scratch:
            _write(spec, asked, column, revision, work, scratch / "new")
            publish(scratch / "new", entry)
    provenance = {
        "dataset": asked.dataset,
        "config": asked.config,
        "split": asked.split,
        "column": column,
        "revision": revision,
        **_facts(entry),
    }
    return Fetched(entry / "documents.jsonl", spec.partition("#")[0], provenance)


def _facts(entry: Path) -> dict[str, object]:
    """Return the row counts of the entry. Raises DataError if it is damaged."""
    try:
        return dict(read_json(entry / "facts.json"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{entry} is damaged: {problem_of(error)}", hint="remove it, and run the command again"
        ) from error


def _require_library(spec: str) -> None:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{spec} needs the package datasets, which is not installed",
            hint="pip install 'llmtrain[hf]'",
        ) from None
    datasets.disable_progress_bars()


def _revision(asked: DatasetSpec) -> str:
    """Return the dataset's commit, or a digest of names, sizes and times of local files."""
    if asked.is_here:
        return _listing(Path(asked.dataset).expanduser())
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(asked.dataset).sha)


def _listing(directory: Path) -> str:
    if not directory.is_dir():
        raise FileNotFoundError(str(directory))
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            stat = path.stat()
            line = [path.relative_to(directory).as_posix(), stat.st_size, stat.st_mtime_ns]
            digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def _rows(asked: DatasetSpec, revision: str) -> _Rows:
    import datasets

    path = str(Path(asked.dataset).expanduser()) if asked.is_here else asked.dataset
    rows: _Rows = datasets.load_dataset(
        path,
        asked.config,
        split=asked.split,
        revision=None if asked.is_here else revision,
        streaming=True,
    )
    return rows


def _write(
    spec: str, asked: DatasetSpec, column: str, revision: str, work: FetchOptions, directory: Path
) -> None:
    """Write every text and the row counts to `directory`."""
    facts = {"rows": 0, "rows_without_text": 0}
    done_bytes = 0
    with (directory / "documents.jsonl").open("wb") as out:
        for record in _records(spec, asked, column, revision, work):
            facts["rows"] += 1
            if record is None:
                facts["rows_without_text"] += 1
                continue
            line = json.dumps(record, ensure_ascii=False).encode()
            out.write(line + b"\n")
            done_bytes += len(line)
            if facts["rows"] % _ROWS_BETWEEN_LOOKS == 0:
                work.check_stop()
                work.on_progress(done_bytes, done_bytes)
    sync_file(directory / "documents.jsonl")
    (directory / "facts.json").write_text(json.dumps(facts), encoding="utf-8", newline="\n")
    sync_file(directory / "facts.json")


def _records(
    spec: str, asked: DatasetSpec, column: str, revision: str, work: FetchOptions
) -> Iterator[dict[str, Any] | None]:
    """Yield a record for every row in order; None for one that has no text."""
    if work.rows == "text":
        for text in _texts(spec, asked, column, revision):
            yield {work.text_field: text} if text else None
        return
    with map_errors(spec, _data_error):
        rows = iter(_rows(asked, revision))
    while (row := _next_row(spec, rows)) is not None:
        yield {name: row[name] for name in COLUMNS if name in row}


def _texts(spec: str, asked: DatasetSpec, column: str, revision: str) -> Iterator[str | None]:
    """Yield the column of every row in order; None if it is empty."""
    with map_errors(spec, _data_error):
        rows = _rows(asked, revision)
        if rows.column_names is not None:
            _require_column(spec, rows.column_names, column)
            rows = rows.select_columns(column)
        following = iter(rows)
    number = 0
    while (row := _next_row(spec, following)) is not None:
        number += 1
        _require_column(spec, row, column)
        text = row[column]
        if text is not None and not isinstance(text, str):
            message = f"{spec}: column {column!r} of row {number} is not text: {str(text)[:40]}"
            raise DataError(message, hint=f"name another one: {_with_column(spec, 'COLUMN')}")
        yield text


def _next_row(spec: str, rows: Iterator[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    with map_errors(spec, _data_error):
        return next(rows, None)


def _require_column(spec: str, columns: list[str] | Mapping[str, Any], column: str) -> None:
    if column not in columns:
        there = ", ".join(map(repr, list(columns)[:20]))
        first = next(iter(columns), "COLUMN")
        raise DataError(
            f"{spec} has no column {column!r}; it has {there}",
            hint=f"name the one that holds the text: {_with_column(spec, first)}",
        )


def _with_column(spec: str, column: str) -> str:
    return f"--data {shlex.quote(spec.partition('#')[0] + '#' + column)}"


def _data_error(spec: str, error: BaseException) -> DataError:
    why = describe_error(error)
    if isinstance(error, FileNotFoundError):
        return DataError(f"{spec} does not exist, or has no data: {why}", hint=_NOTATION)
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return DataError(f"{spec} cannot be read: {why}", hint=_NOTATION)
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"GatedRepoError", "RepositoryNotFoundError"}:
        hint = "where it is private or gated: HF_TOKEN=… or hf auth login, and accept its terms"
        return DataError(f"{spec} does not exist, or may not be read", hint=hint)
    if os.environ.get("HF_HUB_OFFLINE"):
        return DataError(f"{spec} cannot be read offline: {why}", hint="unset HF_HUB_OFFLINE")
    hint = "check the network and run the command again, or name a directory: hf:///a/directory"
    return DataError(f"{spec} cannot be reached: {why}", hint=hint)
