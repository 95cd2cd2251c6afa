"""The table of formats, and the choice of a file's format by its name."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from posixpath import splitext

from llmtrain.data.document import Document, RecordOptions
from llmtrain.data.formats.archives import Members, tar_members, zip_members
from llmtrain.data.formats.columns import arrow_rows, parquet_rows
from llmtrain.data.formats.compression import CODECS
from llmtrain.data.formats.json_text import json_lines, json_values
from llmtrain.data.formats.table import comma_rows, tab_rows
from llmtrain.data.formats.text import python_source, text_parts

Reader = Callable[[io.BufferedReader, str, RecordOptions], Iterator[Document]]


@dataclass(frozen=True, slots=True)
class Format:
    """A function that reads documents from a stream, and its properties.

    `has_records`: texts are in a field of records, and a file of that suffix may lack the field.
    `refuses_nul`: a NUL near the beginning means another format. `seeks`: its end is read first.
    """

    read: Reader
    suffixes: tuple[str, ...] = ()
    has_records: bool = True
    refuses_nul: bool = True
    seeks: bool = False


@dataclass(frozen=True, slots=True)
class Archive:
    """A function that reads the members of an archive from a stream, and its properties."""

    members: Members
    suffixes: tuple[str, ...]
    seeks: bool = False


FORMATS: Mapping[str, Format] = {
    "text": Format(text_parts, has_records=False),
    "python": Format(python_source, has_records=False, refuses_nul=False),
    "jsonl": Format(json_lines, (".jsonl", ".ndjson")),
    "json": Format(json_values, (".json",)),
    "csv": Format(comma_rows, (".csv",)),
    "tsv": Format(tab_rows, (".tsv",)),
    "parquet": Format(parquet_rows, (".parquet",), refuses_nul=False, seeks=True),
    "arrow": Format(arrow_rows, (".arrow", ".feather"), refuses_nul=False, seeks=True),
}
ARCHIVES: Mapping[str, Archive] = {
    "zip": Archive(zip_members, (".zip",), seeks=True),
    "tar": Archive(tar_members, (".tar",)),
}
_SHORT: Mapping[str, str] = {
    ".tgz": ".tar.gz",
    ".tbz2": ".tar.bz2",
    ".txz": ".tar.xz",
    ".tzst": ".tar.zst",
}
_KINDS: Mapping[str, str] = {
    suffix: kind
    for table in (FORMATS, ARCHIVES)
    for kind, each in table.items()
    for suffix in each.suffixes
}
# Suffixes of formats that are not text although they may begin without a NUL byte.
_BINARY_SUFFIXES = frozenset(
    f".{name}"
    for names in (
        "7z a br cab deb egg iso jar lz4 lzma rar rpm whl z",
        "avi bmp flac gif ico jpeg jpg mkv mov mp3 mp4 ogg png tif tiff wav webm webp",
        "bin class db dll dylib exe o obj pyc pyd pyo so sqlite sqlite3 wasm",
        "ckpt gguf h5 hdf5 npy npz onnx orc pickle pkl pt pth safetensors",
        "doc docx eot otf pdf ppt pptx ttf woff woff2 xls xlsx",
    )
    for name in names.split()
)


@dataclass(frozen=True, slots=True)
class FileFormat:
    """The key of a format or archive, and the suffix of its compression, or an empty string."""

    kind: str
    packing: str = ""

    @property
    def is_archive(self) -> bool:
        return self.kind in ARCHIVES

    @property
    def seeks(self) -> bool:
        """True if reading it seeks: it can then be neither compressed nor inside an archive."""
        return ARCHIVES[self.kind].seeks if self.is_archive else FORMATS[self.kind].seeks


def reading_of(name: str) -> FileFormat:
    """Return the format of a file of that name: text if its suffix is unknown."""
    inner, packing = _unpacked_name(name)
    return FileFormat(_KINDS.get(inner, "text"), packing)


def reason_not_to_read(name: str, *, inside: bool = False) -> str | None:
    """Return why a file of that name is not read, or None. `inside`: it is in an archive."""
    inner, packing = _unpacked_name(name)
    reading = reading_of(name)
    if inner in _BINARY_SUFFIXES:
        return "binary"
    if inside and reading.is_archive:
        return "an archive in an archive"
    if reading.seeks and (packing or inside):
        return f"{inner} that is packed; unpack it first"
    return None


def _unpacked_name(name: str) -> tuple[str, str]:
    """Return the suffix and that of the compression around it, in lower case."""
    stem, suffix = splitext(name.replace("\\", "/").lower())
    inner, packing = splitext(stem + _SHORT.get(suffix, suffix))
    return (splitext(inner)[1], packing) if packing in CODECS else (packing, "")
