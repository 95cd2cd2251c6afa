"""List the files of an address on object stores and web servers, through fsspec.

A version is the store's record of a file: a checksum, a tag or a time, and its size. Credentials
are read by the libraries (from the environment or their own files), and are never in a spec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Protocol, cast
from urllib.parse import unquote

from llmtrain.data.sources.urls import WEB, map_errors, scheme_of, without_secrets
from llmtrain.errors import DataError

_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs"), "adlfs"),
}
_SILENT_S = 60.0  # the longest wait for data
_OF_THE_EXTRA = frozenset({"s3fs", "aiohttp", "fsspec"})
# The first of these that a store reports, with the size, identifies the version of a file.
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "checksum", "crc32c"),
    *("VersionId", "generation", "Last-Modified", "LastModified", "last_modified", "updated"),
    *("mtime", "modified", "created"),
)


class Store(Protocol):
    """The interface of fsspec's file systems, as far as it is used."""

    def info(self, path: str) -> dict[str, Any]: ...
    def find(self, path: str, *, detail: bool) -> dict[str, dict[str, Any]]: ...
    def glob(self, path: str, *, detail: bool) -> dict[str, dict[str, Any]]: ...
    def open(self, path: str, mode: str, **options: object) -> Any: ...


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a store; `name` is relative to the spec's path, `version` may be unknown."""

    path: str
    name: str
    size_bytes: int | None
    version: Mapping[str, str]


def store_of(spec: str) -> tuple[Store, str]:
    """Return the store of an address, and its path there. Raises DataError."""
    try:
        import fsspec
    except ImportError:
        raise _missing_extra(spec) from None
    if "::" in spec:
        raise DataError(
            f"{without_secrets(spec)} has ::, which is not used here", hint="name one address"
        )
    with map_errors(spec):
        try:
            # Otherwise a process would reuse its first listing and never see changes.
            options = {"skip_instance_cache": True, **_web_options(spec)}
            store, path = fsspec.core.url_to_fs(spec, **options)
        except ImportError:
            raise _missing_extra(spec) from None
    return cast("Store", store), path


def _web_options(spec: str) -> dict[str, Any]:
    """Return options that use proxies and ~/.netrc, and limit only the time without data."""
    if scheme_of(spec) not in WEB:
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_S, sock_read=_SILENT_S)
    return {"client_kwargs": {"trust_env": True, "timeout": timeout}}


def _missing_extra(spec: str) -> DataError:
    package = _PACKAGES.get(scheme_of(spec) or "", "fsspec")
    more = "" if package in _OF_THE_EXTRA else f" {package}"
    return DataError(
        f"{without_secrets(spec)} needs the package {package}, which is not installed",
        hint=f"pip install 'llmtrain[remote]'{more}",
    )


def _has_pattern(spec: str) -> bool:
    """Return whether the spec has wildcards; `?` begins the query of a web address."""
    characters = "*[" if scheme_of(spec) in WEB else "*?["
    return any(character in spec for character in characters)


def listed(spec: str, store: Store, path: str) -> tuple[str, list[StoredFile]]:
    """Return the path that names are relative to, and every file that is not hidden, by name."""
    if _has_pattern(spec):
        fixed = re.split(r"[*?\[]", path)[0]
        root, found = fixed.rpartition("/")[0], store.glob(path, detail=True)
        if not found:
            raise FileNotFoundError(path)
    else:
        # A web page is a file or, if its name ends like this, a list of files.
        is_list = scheme_of(spec) in WEB and spec.endswith("/")
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


def _file(store: Store, path: str, name: str, info: Mapping[str, Any]) -> StoredFile:
    version = _version(info)
    if not version:  # a list on the web has only names
        info = store.info(path)
        version = _version(info)
    size = info.get("size")
    return StoredFile(path, name, size if isinstance(size, int) else None, version)


def _version(info: Mapping[str, Any]) -> dict[str, str]:
    said = (key for key in _VERSION_KEYS if info.get(key))
    return {key: _as_text(info[key]) for key in islice(said, 1)}


def _as_text(value: object) -> str:
    """Return a version as text; listings and single requests have different forms of times."""
    return str(value.timestamp() if isinstance(value, datetime) else value)
