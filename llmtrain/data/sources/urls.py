"""Addresses of remote data: schemes, secrets in them, and errors of the libraries."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

from llmtrain.errors import DataError

WEB = frozenset({"http", "https"})
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRET_KEY = re.compile(  # of a query: signed addresses of the large stores, and usual names
    r"x-(amz|goog)-(signature|credential|security-token)|awsaccesskeyid|googleaccessid|sig|"
    r"(key-pair-id|policy)|signature|(access_|auth_)?token|(api_?)?key|secret|password",
    re.IGNORECASE,
)
_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "http", "https", "memory"})
_WITH_CONTAINERS = frozenset({"az", "abfs"})
_LIBRARY_ERRORS = (  # the base classes of their errors, by module
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("datasets.exceptions", "DatasetsError"),
    ("huggingface_hub.errors", "HTTPError"),  # of httpx, or of httpx2 from 2.4 on
)
_NO_PERMISSION = frozenset(
    {"PermissionError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
)


def scheme_of(spec: str) -> str | None:
    """Return `s3` of `s3://…`, in lower case; None if it is not an address."""
    match = _SCHEME.match(spec)
    return match[1].lower() if match else None


def is_remote(spec: str) -> bool:
    """Return whether `spec` is an address that `fetch` can read."""
    return scheme_of(spec) in _SCHEMES


def without_secrets(spec: str) -> str:
    """Return the spec without a password and without a query, for messages and records."""
    match = _SCHEME.match(spec)
    if match is None:
        return spec
    host, slash, path = spec[match.end() :].partition("/")
    is_web = scheme_of(spec) in WEB
    if _has_secret(spec, host):
        host = host.rpartition("@")[2]
    address = match[0] + host + slash + path
    return re.sub(r"[?#].*", "?…", address, flags=re.DOTALL) if is_web else address


def _has_secret(spec: str, host: str) -> bool:
    """Return whether `host` begins with a user's name or password (Azure: a container)."""
    user, at, _ = host.rpartition("@")
    return bool(at) and (":" in user or scheme_of(spec) not in _WITH_CONTAINERS)


def address_of(spec: str, path: str) -> str:
    """Return the address of a path in the spec's store, without secrets."""
    return without_secrets(path if scheme_of(path) else f"{scheme_of(spec)}://{path.lstrip('/')}")


def require_no_secret(spec: str) -> None:
    """Raise DataError if the spec has a user, a password or a signature."""
    match = _SCHEME.match(spec)
    host = spec[match.end() :].partition("/")[0] if match else ""
    if _has_secret(spec, host):
        raise DataError(
            f"{without_secrets(spec)} has a user's name or password, which would be saved "
            "with the run",
            hint="leave them out: https reads ~/.netrc, s3:// the environment and ~/.aws",
        )
    query = parse_qsl(urlsplit(spec).query, keep_blank_values=True)
    secret = next((key for key, _ in query if _SECRET_KEY.fullmatch(key)), None)
    if secret is not None:
        raise DataError(
            f"{without_secrets(spec)} has {secret}=…, which would be saved with the run",
            hint="download the file first (curl --output FILE ADDRESS), then --data FILE",
        )


def describe_error(error: BaseException) -> str:
    """Return the message of a library's error in one line, without secrets of addresses."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(_SCHEME.pattern + r"[^\s'\")]+", lambda match: without_secrets(match[0]), text)[
        :300
    ]


def _data_error(spec: str, error: BaseException) -> DataError:
    """Return the error by its cause: fsspec calls any web failure "not found"."""
    place, cause = without_secrets(spec), error.__cause__
    if "aiohttp" in sys.modules and isinstance(cause, sys.modules["aiohttp"].ClientError):
        error = cause
    status = error.__dict__.get("status")
    if status in (401, 403) or type(error).__name__ in _NO_PERMISSION:
        return DataError(
            f"{place} may not be read: {describe_error(error)}",
            hint="credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws, "
            "~/.netrc); for a public bucket: FSSPEC_S3_ANON=true",
        )
    if status in (404, 410) or isinstance(error, FileNotFoundError):
        hint = "check how it is written; a directory of the web ends in /"
        return DataError(f"{place} does not exist", hint=hint)
    return DataError(
        f"{place} cannot be read: {describe_error(error)}",
        hint="check the network and run the command again, or download the files and name them",
    )


@contextmanager
def map_errors(
    spec: str, data_error: Callable[[str, BaseException], DataError] = _data_error
) -> Iterator[None]:
    """Convert errors of libraries inside the block to the DataError that `data_error` returns."""
    failures = store_errors()
    try:
        yield
    except failures as error:
        raise data_error(spec, error) from None  # its message may have the whole address


def store_errors() -> tuple[type[BaseException], ...]:
    """Return the error classes for an unreadable store, of the libraries that are loaded."""
    loaded = ((sys.modules.get(module), name) for module, name in _LIBRARY_ERRORS)
    of_libraries = (vars(module)[name] for module, name in loaded if module is not None)
    return (OSError, ValueError, asyncio.TimeoutError, *of_libraries)
