"""Download remote files, `s3://…`, `https://…`, into the cache, and read them as local files.

<cache>/remote/files/<key>          one file; the key is of its address and of its version
<cache>/remote/trees/<key>/…        the files of one source, as links to these, by their names
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from llmtrain.data.document import Rows, Skipped, no_text_file
from llmtrain.data.shards.cache_entry import building_directory, map_write_errors, publish
from llmtrain.data.sources.object_stores import Store, StoredFile, listed, store_of
from llmtrain.data.sources.urls import (
    WEB,
    address_of,
    map_errors,
    require_no_secret,
    scheme_of,
    without_secrets,
)
from llmtrain.errors import DataError
from llmtrain.files import json_key, sha256_file, sync_file

_PLAIN_NAME = re.compile(r"\w([\w .,+=@~-]*[\w+=@~-])?")  # the same file name on every platform
_CHUNK_BYTES = 4 << 20
_AT_ONCE = 8  # small files take more time to request than to transfer
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Options of fetching remote files. An exception from `check_stop` ends it.

    `on_progress` is called with bytes done and in all; `text_field` is the text's in `.jsonl`.
    `rows`: whether rows of datasets have a text or a conversation.
    `reason_against` returns why the file of a name below an address is not fetched, or None.
    """

    cache: Path
    text_field: str
    rows: Rows = "text"
    on_progress: Callable[[int, int], None] = lambda done, total: None
    check_stop: Callable[[], None] = lambda: None
    reason_against: Callable[[str], str | None] = lambda name: None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetched spec: `path` is the local copy of `address`.

    `provenance` is its version, ready for JSON; `left_there` are the files that were not
    fetched.
    """

    path: Path
    address: str
    provenance: dict[str, object]
    left_there: tuple[Skipped, ...] = ()


def fetch(spec: str, work: FetchOptions) -> Fetched:
    """Fetch an address into the cache: a file, or a directory of files.

    A version that the cache has is not fetched again. Raises DataError.
    """
    require_no_secret(spec)
    store, path = store_of(spec)
    with map_errors(spec):
        root, found = listed(spec, store, path)
    only = found[0] if len(found) == 1 and found[0].path == root else None
    reasons = {} if only else {f.path: work.reason_against(f.name) for f in found}
    files = [file for file in found if reasons.get(file.path) is None]
    left_there = tuple(Skipped(address_of(spec, p), why) for p, why in reasons.items() if why)
    if not files:
        hint = "names that begin with . do not count"
        none = no_text_file(left_there)
        raise DataError(f"{without_secrets(spec)} has {none}", hint=hint)
    directory = work.cache / "remote"
    with map_write_errors(directory, f"the files of {without_secrets(spec)}"):
        with building_directory(directory / "files") as scratch:
            keys = _bring(_Download(spec, store, scratch), files, work)
        tree = directory / "trees" / json_key([[file.name, keys[file.path]] for file in files])
        if not tree.is_dir():
            with building_directory(tree.parent) as scratch:
                _link(spec, files, keys, directory / "files", scratch / "new")
                publish(scratch / "new", tree)
    provenance = _provenance(files, keys, directory / "files")
    if only:
        return Fetched(tree / _local_name(only.name), without_secrets(spec), provenance)
    return Fetched(tree, address_of(spec, root).rstrip("/"), provenance, left_there)


def _bring(download: _Download, files: Sequence[StoredFile], work: FetchOptions) -> dict[str, str]:
    """Fetch every file that is missing; return their names in the cache by path."""
    keys = {file.path: key for file in files if (key := download.key_of(file)) is not None}
    kept = download.scratch.parent
    missing = [f for f in files if f.path not in keys or not (kept / keys[f.path]).is_file()]
    total = sum(file.size_bytes or 0 for file in missing)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            coming = {pool.submit(download.bring, file): file for file in missing}
            waiting = set(coming)
            while waiting:
                done, waiting = wait(waiting, timeout=_LOOK_EVERY_S)
                keys |= {coming[each].path: each.result() for each in done}
                work.check_stop()
                work.on_progress(download.done_bytes, max(download.done_bytes, total))
        except BaseException:
            download.is_given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return keys


@dataclass(slots=True)
class _Download:
    """A download of one source's files into the directory above `scratch`, several at once."""

    spec: str
    store: Store
    scratch: Path
    done_bytes: int = 0
    is_given_up: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def key_of(self, file: StoredFile) -> str | None:
        """Return the name in the cache; None if versions can only be distinguished by content."""
        if not file.version:
            return None
        return json_key([scheme_of(self.spec), file.path, file.size_bytes, dict(file.version)])

    def bring(self, file: StoredFile) -> str:
        """Fetch the file; return its name in the cache. Raises DataError."""
        part = self.scratch / json_key(file.path)
        self._write(file, part)
        key = self.key_of(file) or json_key(sha256_file(part))
        if not self.is_given_up.is_set():
            publish(part, self.scratch.parent / key)
        return key

    def _write(self, file: StoredFile, part: Path) -> None:
        """Write the file to `part`; incomplete if the download is cancelled."""
        address, size_bytes = address_of(self.spec, file.path), 0
        # A web server may not support range requests; 0 requests the whole file.
        block_bytes = 0 if scheme_of(self.spec) in WEB else _CHUNK_BYTES
        with part.open("wb") as out:
            with map_errors(address):
                source = self.store.open(file.path, "rb", block_size=block_bytes)
            with source:
                while not self.is_given_up.is_set() and (chunk := _next_chunk(source, address)):
                    out.write(chunk)
                    size_bytes += len(chunk)
                    with self.lock:
                        self.done_bytes += len(chunk)
        if self.is_given_up.is_set():
            return
        if file.size_bytes is not None and size_bytes != file.size_bytes:
            raise DataError(
                f"{address} ended after {size_bytes} of {file.size_bytes} bytes",
                hint="run the command again; what has come whole is kept",
            )
        sync_file(part)


def _next_chunk(source: Any, address: str) -> bytes:
    with map_errors(address):
        return cast("bytes", source.read(_CHUNK_BYTES))


def _link(
    spec: str, files: list[StoredFile], keys: Mapping[str, str], kept: Path, directory: Path
) -> None:
    """Link the files into `directory` by their names, or copy them if there are no links."""
    for file in files:
        path = directory / _local_name(file.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise FileExistsError
        except (FileExistsError, NotADirectoryError):
            raise DataError(
                f"{without_secrets(spec)} has {file.name} and another name that this "
                "file system takes for the same",
                hint="name its parts one by one",
            ) from None
        source = kept / keys[file.path]
        try:
            os.link(source, path)
        except OSError:  # a file system without links
            shutil.copyfile(source, path)


def _local_name(name: str) -> str:
    """Return a relative path that is safe on every platform, with the same suffixes."""
    return "/".join(_local_part(part) for part in name.split("/") if part)


def _local_part(part: str) -> str:
    if _PLAIN_NAME.fullmatch(part):
        return part
    return re.sub(r"^\.|\.$", "%2E", quote(part, safe=""))


def _provenance(files: list[StoredFile], keys: Mapping[str, str], kept: Path) -> dict[str, object]:
    """Return a record of the files; for a single one also its version."""
    record: dict[str, object] = {
        "fetched_files": len(files),
        "fetched_bytes": sum((kept / keys[file.path]).stat().st_size for file in files),
        "versions_sha256": hashlib.sha256(
            json.dumps([[f.name, f.size_bytes, dict(f.version)] for f in files]).encode()
        ).hexdigest(),
    }
    return record | ({"version": dict(files[0].version)} if len(files) == 1 else {})
