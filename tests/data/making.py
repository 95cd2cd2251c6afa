"""The same texts as files of every format, packing and archive, written by other libraries."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Writer = Callable[[Sequence[str]], bytes]


def json_lines(texts: Sequence[str]) -> bytes:
    return b"".join(json.dumps({"n": 1, "text": t}).encode() + b"\n" for t in texts)


def json_array(texts: Sequence[str]) -> bytes:
    return json.dumps([{"text": t} for t in texts], ensure_ascii=False, indent=1).encode()


def json_strings(texts: Sequence[str]) -> bytes:
    return b"\xef\xbb\xbf" + json.dumps(texts).encode()


def json_objects(texts: Sequence[str]) -> bytes:
    return "\n\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts).encode()


def table(texts: Sequence[str], dialect: str) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, dialect, quoting=csv.QUOTE_ALL)
    writer.writerows([["n", "text"], *(["1", text] for text in texts)])
    return file.getvalue().encode()


def arrow_table(texts: Sequence[str]) -> pa.Table:
    kind = pa.large_string() if len(texts) % 2 else pa.string()
    columns = {"n": pa.array(range(len(texts))), "text": pa.array(texts, kind)}
    return pa.table(columns)


def parquet(texts: Sequence[str], rows_in_group: int = 3) -> bytes:
    file = io.BytesIO()
    pa.parquet.write_table(arrow_table(texts), file, row_group_size=rows_in_group)
    return file.getvalue()


def feather(texts: Sequence[str]) -> bytes:
    file = io.BytesIO()
    pa.feather.write_feather(arrow_table(texts), file, chunksize=3)
    return file.getvalue()


def arrow_stream(texts: Sequence[str]) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, arrow_table(texts).schema) as writer:
        writer.write_table(arrow_table(texts), max_chunksize=3)
    return file.getvalue()


def zip_of(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tar_of(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return file.getvalue()


def _text_files(texts: Sequence[str]) -> dict[str, bytes]:
    return {f"d/{number:05d}.txt": text.encode() for number, text in enumerate(texts)}


# Suffix → writer. What comes after the dash only tells two apart.
FORMATS: Mapping[str, Writer] = {
    ".jsonl": json_lines,
    ".json-array": json_array,
    ".json-strings": json_strings,
    ".json-objects": json_objects,
    ".csv": lambda texts: table(texts, "excel"),
    ".csv-unix": lambda texts: table(texts, "unix"),
    ".tsv": lambda texts: table(texts, "excel-tab"),
    ".parquet": parquet,
    ".feather": feather,
    ".arrow": feather,
    ".arrow-stream": arrow_stream,
    ".zip": lambda texts: zip_of(_text_files(texts)),
    ".tar": lambda texts: tar_of(_text_files(texts)),
}
PACKINGS: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}
SEEKING = frozenset({".parquet", ".feather", ".arrow", ".arrow-stream", ".zip"})
