"""Files elsewhere, `s3://…`, `https://…`: copied into the cache, and then files like all others.

    <cache>/remote/files/<key>          one file; the key is of its address and of its version
    <cache>/remote/trees/<key>/…        what one source was, as links to these, by their names

A version is what the store says of a file: a checksum, a tag or a time, and its size. Who may read
it is known to the libraries (environment, their own files), never to a spec.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote, unquote

from llmtrain.data.scratch import publish, scratch_beside
from llmtrain.errors import DataError
from llmtrain.files import sha256_file, sync_file

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "http", "https", "memory"})
_WEB = frozenset({"http", "https"})
_WITH_CONTAINERS = frozenset({"az", "abfs"})
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs"), "adlfs"),
}
_OF_THE_EXTRA = frozenset({"s3fs", "aiohttp", "fsspec"})
# The first of these that a store says, beside the size, tells two versions of a file apart.
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "checksum", "crc32c"),
    *("VersionId", "generation", "Last-Modified", "LastModified", "last_modified", "updated"),
    *("mtime", "modified", "created"),
)
_PLAIN_NAME = re.compile(r"\w[\w .,+=@~-]*")  # the same file name on every platform
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Fetching:
    """How what lies elsewhere is brought here. Whatever `check_stop` raises ends it.

    `on_progress` is told bytes done and in all; `text_field` is where text goes in `.jsonl`.
    `reason_against` says of a name below an address why its file can stay where it is.
    """

    cache: Path
    text_field: str
    on_progress: Callable[[int, int], None] = lambda done, total: None
    check_stop: Callable[[], None] = lambda: None
    reason_against: Callable[[str], str | None] = lambda name: None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a spec stands for, as it is here: `path` holds what was at `address`.

    `provenance` says which version of it, ready for JSON; `left_there` the addresses of files that
    were not wanted, and why.
    """

    path: Path
    address: str
    provenance: dict[str, object]
    left_there: tuple[tuple[str, str], ...] = ()


class _Store(Protocol):
    """What is used of fsspec's file systems."""

    def info(self, path: str) -> dict[str, Any]: ...
    def find(self, path: str, *, detail: bool) -> dict[str, dict[str, Any]]: ...
    def glob(self, path: str, *, detail: bool) -> dict[str, dict[str, Any]]: ...
    def open(self, path: str, mode: str, **options: object) -> Any: ...


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a store; `name` is below what the spec names, `version` may be unknown."""

    path: str
    name: str
    size_bytes: int | None
    version: Mapping[str, str]


def scheme_of(spec: str) -> str | None:
    """`s3` of `s3://…`, in lower case; None of what is no address."""
    match = _SCHEME.match(spec)
    return match[1].lower() if match else None


def is_remote(spec: str) -> bool:
    """`spec` is an address that `fetch` knows to read."""
    return scheme_of(spec) in _SCHEMES


def shown(spec: str) -> str:
    """The spec as it may be seen by anybody: without a password, and without a query."""
    match = _SCHEME.match(spec)
    if match is None:
        return spec
    host, slash, path = spec[match.end() :].partition("/")
    is_web = scheme_of(spec) in _WEB
    if _has_secret(spec, host):
        host = host.rpartition("@")[2]
    address = match[0] + host + slash + path
    return re.sub(r"[?#].*", "?…", address, flags=re.DOTALL) if is_web else address


def _has_secret(spec: str, host: str) -> bool:
    """Whether `host` begins with a user's name or password, and not a container as Azure's do."""
    user, at, _ = host.rpartition("@")
    return bool(at) and (":" in user or scheme_of(spec) not in _WITH_CONTAINERS)


def fetch(spec: str, work: Fetching) -> Fetched:
    """What is at an address, in the cache: a file, or a directory with the files of one.

    What the cache has in that version is not brought again. Raises DataError.
    """
    _require_no_password(spec)
    store, path = _store_of(spec)
    with _told(spec):
        root, found = _listed(spec, store, path)
    only = found[0] if len(found) == 1 and found[0].path == root else None
    reasons = {} if only else {f.path: work.reason_against(f.name) for f in found}
    files = [file for file in found if reasons.get(file.path) is None]
    left_there = tuple((_address(spec, p), why) for p, why in reasons.items() if why is not None)
    if not files:
        hint = "names that begin with . do not count"
        raise DataError(f"{shown(spec)} has no files that can be text", hint=hint)
    directory = work.cache / "remote"
    with scratch_beside(directory / "files", f"what {shown(spec)} is") as scratch:
        keys = _bring(spec, store, files, work, scratch)
    tree = directory / "trees" / _key([[file.name, keys[file.path]] for file in files])
    if not tree.is_dir():
        with scratch_beside(tree.parent, "links to files") as scratch:
            _link(spec, files, keys, directory / "files", scratch / "new")
            publish(scratch / "new", tree)
    provenance = _provenance(files, keys, directory / "files")
    if only:
        return Fetched(tree / _local_name(only.name), shown(spec), provenance)
    return Fetched(tree, _address(spec, root).rstrip("/"), provenance, left_there)


def _require_no_password(spec: str) -> None:
    match = _SCHEME.match(spec)
    host = spec[match.end() :].partition("/")[0] if match else ""
    if _has_secret(spec, host):
        raise DataError(
            f"{shown(spec)} was written with a user's name or password, which would be saved with "
            "the run",
            hint="leave them out: https reads ~/.netrc, s3:// the environment and ~/.aws",
        )


def _store_of(spec: str) -> tuple[_Store, str]:
    try:
        import fsspec
    except ImportError:
        raise _missing_extra(spec) from None
    if "::" in spec:
        raise DataError(f"{shown(spec)} has ::, which is not used here", hint="name one address")
    # Otherwise what was listed once in a process would be what it knows for ever.
    options: dict[str, Any] = {"skip_instance_cache": True}
    if scheme_of(spec) in _WEB:
        options["client_kwargs"] = {"trust_env": True}  # proxies, and ~/.netrc
    try:
        store, path = fsspec.core.url_to_fs(spec, **options)
    except ImportError:
        raise _missing_extra(spec) from None
    except ValueError as error:
        raise _data_error(spec, error) from None
    return cast("_Store", store), path


def _missing_extra(spec: str) -> DataError:
    package = _PACKAGES.get(scheme_of(spec) or "", "fsspec")
    more = "" if package in _OF_THE_EXTRA else f" {package}"
    return DataError(
        f"{shown(spec)} needs the package {package}, which is not installed",
        hint=f"pip install 'llmtrain[remote]'{more}",
    )


def _has_pattern(spec: str) -> bool:
    """Whether the spec stands for several names; `?` begins the query of a web address."""
    characters = "*[" if scheme_of(spec) in _WEB else "*?["
    return any(character in spec for character in characters)


def _listed(spec: str, store: _Store, path: str) -> tuple[str, list[_File]]:
    """Where names begin, and every file, in the order of its name; hidden ones are left out."""
    if _has_pattern(spec):
        fixed = re.split(r"[*?\[]", path)[0]
        root, found = fixed.rpartition("/")[0], store.glob(path, detail=True)
        if not found:
            raise FileNotFoundError(path)
    else:
        # A page of the web is a file or, where its name ends so, a list of files.
        is_list = scheme_of(spec) in _WEB and spec.endswith("/")
        info = {} if is_list else store.info(path)
        if info.get("type") == "file":
            return path, [_file(store, path, _last_name(path), info)]
        root, found = path.rstrip("/"), store.find(path, detail=True)
    named = ((p, p.removeprefix(root).lstrip("/"), info) for p, info in sorted(found.items()))
    files = [
        _file(store, p, name, info)
        for p, name, info in named
        if info.get("type") == "file" and not name.endswith("/") and not _is_hidden(name)
    ]
    return root, files


def _last_name(path: str) -> str:
    return unquote(re.split(r"[?#]", path)[0].rstrip("/").rpartition("/")[2]) or "page"


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _file(store: _Store, path: str, name: str, info: Mapping[str, Any]) -> _File:
    version = _version(info)
    if not version:  # a list on the web says nothing but names
        info = store.info(path)
        version = _version(info)
    size = info.get("size")
    return _File(path, name, size if isinstance(size, int) else None, version)


def _version(info: Mapping[str, Any]) -> dict[str, str]:
    said = (key for key in _VERSION_KEYS if info.get(key))
    return {key: _as_text(info[key]) for key in islice(said, 1)}


def _as_text(value: object) -> str:
    """A list and a question about one file may say a time in two forms."""
    return str(value.timestamp() if isinstance(value, datetime) else value)


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _bring(
    spec: str, store: _Store, files: list[_File], work: Fetching, scratch: Path
) -> dict[str, str]:
    """The name in the cache of every file, by its path; each is there now."""
    kept = scratch.parent
    keys = {
        file.path: _key([scheme_of(spec), file.path, file.size_bytes, dict(file.version)])
        for file in files
        if file.version
    }
    missing = [f for f in files if f.path not in keys or not (kept / keys[f.path]).is_file()]
    total = sum(file.size_bytes or 0 for file in missing)
    done = 0
    for file in missing:
        for chunk_bytes in _download(spec, store, file, scratch / "new"):
            work.check_stop()
            done += chunk_bytes
            work.on_progress(done, max(done, total))
        if file.path not in keys:  # nothing but its content tells its versions apart
            keys[file.path] = _key(sha256_file(scratch / "new"))
        publish(scratch / "new", kept / keys[file.path])
    return keys


def _download(spec: str, store: _Store, file: _File, target: Path) -> Iterator[int]:
    """`target` holds the file, on disk; the sizes of its parts as they come."""
    address = _address(spec, file.path)
    # A web server need not know how to send parts.
    options = {"block_size": 0} if scheme_of(spec) in _WEB else {}
    size_bytes = 0
    with target.open("wb") as out:
        with _told(address):
            source = store.open(file.path, "rb", **options)
        with source:
            while chunk := _next_chunk(source, address):
                out.write(chunk)
                size_bytes += len(chunk)
                yield len(chunk)
    if file.size_bytes is not None and size_bytes != file.size_bytes:
        raise DataError(
            f"{address} ended after {size_bytes} of {file.size_bytes} bytes",
            hint="run the command again; what has come whole is kept",
        )
    sync_file(target)


def _address(spec: str, path: str) -> str:
    """Where a path of the spec's store is, as it may be shown; web stores have whole addresses."""
    return shown(path if scheme_of(path) else f"{scheme_of(spec)}://{path.lstrip('/')}")


def _next_chunk(source: Any, address: str) -> bytes:
    with _told(address):
        return cast("bytes", source.read(_CHUNK_BYTES))


def _link(
    spec: str, files: list[_File], keys: Mapping[str, str], kept: Path, directory: Path
) -> None:
    """`directory` has the files by their names: links, which take no room, or copies."""
    directory.mkdir()
    for file in files:
        path = directory / _local_name(file.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise FileExistsError
        except (FileExistsError, NotADirectoryError):
            raise DataError(
                f"{shown(spec)} has {file.name} and a name that is the same to this file system",
                hint="name its parts apart from each other",
            ) from None
        source = kept / keys[file.path]
        try:
            os.link(source, path)
        except OSError:  # a file system without links
            shutil.copyfile(source, path)


def _local_name(name: str) -> str:
    """A relative path that stays below where it is put, on every platform."""
    return "/".join(
        part if _PLAIN_NAME.fullmatch(part) else quote(part, safe="").replace(".", "%2E")
        for part in name.split("/")
        if part
    )


def _provenance(files: list[_File], keys: Mapping[str, str], kept: Path) -> dict[str, object]:
    """Which files they were; of one also what its store says of its version."""
    record: dict[str, object] = {
        "fetched_files": len(files),
        "fetched_bytes": sum((kept / keys[file.path]).stat().st_size for file in files),
        "versions_sha256": hashlib.sha256(
            json.dumps([[f.name, f.size_bytes, dict(f.version)] for f in files]).encode()
        ).hexdigest(),
    }
    return record | ({"version": dict(files[0].version)} if len(files) == 1 else {})


@contextmanager
def _told(spec: str) -> Iterator[None]:
    """What libraries raise inside the block is a DataError that says what can be done."""
    failures = _failures()
    try:
        yield
    except failures as error:
        raise _data_error(spec, error) from None  # what it says may have the whole address


def _failures() -> tuple[type[BaseException], ...]:
    """What a store raises where it cannot be read, of the libraries that it has loaded."""
    found: list[type[BaseException]] = [OSError, ValueError, asyncio.TimeoutError]
    if "aiohttp" in sys.modules:
        import aiohttp

        found.append(aiohttp.ClientError)
    if "botocore" in sys.modules:
        from botocore.exceptions import BotoCoreError, ClientError

        found += [BotoCoreError, ClientError]
    return tuple(found)


def _data_error(spec: str, error: BaseException) -> DataError:
    """By what is behind it: a web address that cannot be had for any reason is "not found"."""
    place, cause = shown(spec), error.__cause__
    if "aiohttp" in sys.modules and isinstance(cause, sys.modules["aiohttp"].ClientError):
        error = cause
    status = error.__dict__.get("status")
    if status in (401, 403) or type(error).__name__ in _NO_PERMISSION:
        return DataError(
            f"{place} may not be read: {_problem(error)}",
            hint="credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws, "
            "~/.netrc); for a public bucket: FSSPEC_S3_ANON=true",
        )
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        hint = "check how it is written; a directory of the web ends in /"
        return DataError(f"{place} does not exist", hint=hint)
    return DataError(
        f"{place} cannot be read: {_problem(error)}",
        hint="check the network and run the command again, or bring the files here and name them",
    )


_NO_PERMISSION = frozenset(
    {"PermissionError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
)


def _problem(error: BaseException) -> str:
    """What the library says, in one line, with addresses as they may be shown."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\")]+", lambda m: shown(m[0]), text)[:300]
