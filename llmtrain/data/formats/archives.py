"""The members of a .zip or a .tar, in its order, read as streams: nothing is extracted to disk."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, cast

from llmtrain.data.formats.streams import CheckedStream, UnpackedMeter, map_damage
from llmtrain.errors import DataError

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without it
    LZMAError = EOFError  # type: ignore[misc, assignment]

_ZIP_FAILURES = (
    *(zipfile.BadZipFile, zlib.error, LZMAError, EOFError),
    *(NotImplementedError, RuntimeError, struct.error, ValueError),
)
_TAR_FAILURES = (tarfile.TarError, EOFError)
# Names and attributes of a member that do not fit its header; the library reads them into memory.
_EXTENSIONS = frozenset(
    (
        *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
        *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    )
)
_LONGEST_EXTENSION_BYTES = 1 << 20
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive. `problem`: why it cannot be read, or None.

    It can be opened until the next member is requested.
    """

    name: str
    problem: str | None
    open: Callable[[], AbstractContextManager[io.BufferedReader]]


Members = Callable[[io.BufferedReader, str, UnpackedMeter], Iterator[Member]]


def zip_members(stream: io.BufferedReader, origin: str, meter: UnpackedMeter) -> Iterator[Member]:
    """Yield every file in a .zip. Raises DataError if it is damaged or a file is encrypted."""
    with map_damage(origin, "zip file", _ZIP_FAILURES):
        archive = zipfile.ZipFile(stream)
    for info in archive.infolist():
        if not info.filename.endswith("/"):
            place = f"{origin}!{info.filename}"
            if info.flag_bits & _ENCRYPTED:
                raise DataError(f"{place} is encrypted", hint="unpack it, and name the directory")
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            problem = "a link" if is_link else _unsafe(info.filename)
            open_member = partial(archive.open, info)
            opener = _opener(open_member, place, "member of a zip file", _ZIP_FAILURES, meter)
            yield Member(info.filename, problem, opener)


def _opener(
    open_member: Callable[[], IO[bytes] | None],
    place: str,
    what: str,
    failures: tuple[type[Exception], ...],
    meter: UnpackedMeter | None = None,
) -> Callable[[], AbstractContextManager[io.BufferedReader]]:
    """Return a function that opens the member at `place` of a `what`."""

    @contextmanager
    def opened() -> Iterator[io.BufferedReader]:
        with map_damage(place, what, failures):
            member = open_member()
        assert member is not None, "only files are opened"
        with member:
            yield CheckedStream(
                cast("io.BufferedReader", member), place, what=what, failures=failures, meter=meter
            ).buffered()

    return opened


class _BoundedHeader(tarfile.TarInfo):
    """A header whose extensions fit in memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _BoundedHeader:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):
                raise  # the end mark; the library also takes any invalid header for one
            said = str(error) if buf else "there is no mark of the end"
            raise tarfile.ReadError(said) from error
        if header.type in _EXTENSIONS and header.size > _LONGEST_EXTENSION_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def tar_members(stream: io.BufferedReader, origin: str, meter: UnpackedMeter) -> Iterator[Member]:
    """Yield every file in a .tar, in one pass. Raises DataError if it is damaged."""
    with map_damage(origin, "tar file", _TAR_FAILURES):
        # Never closed: it holds only the stream, which the caller closes.
        archive = tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedHeader)  # noqa: SIM115
    while (info := _next(archive, origin)) is not None:
        archive.members.clear()  # type: ignore[attr-defined] # it would keep every header
        if not info.isdir():
            place = f"{origin}!{info.name}"
            open_member = partial(archive.extractfile, info)
            opener = _opener(open_member, place, "member of a tar file", _TAR_FAILURES)
            yield Member(info.name, _tar_problem(info), opener)


def _next(archive: tarfile.TarFile, origin: str) -> tarfile.TarInfo | None:
    with map_damage(origin, "tar file", _TAR_FAILURES, lambda: f"at byte {archive.offset}"):
        return archive.next()


def _tar_problem(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "a link"
    if not info.isfile() or info.issparse():
        return "not a regular file"
    return _unsafe(info.name)


def _unsafe(name: str) -> str | None:
    """Return whether a name leads out of the archive: harmless here, but suspicious."""
    parts = name.replace("\\", "/").split("/")
    leads_out = ".." in parts or not parts[0] or ":" in parts[0]
    return "an unsafe name" if leads_out else None
