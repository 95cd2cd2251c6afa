"""What is damaged, hostile or something else: one line that says what and where, exit code 5."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from llmtrain.data.document import Limits
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError
from tests.data.making import FORMATS, PACKINGS, parquet, tar_of, zip_of, zstd

Prepare = Callable[[Path], object]
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
# Text that no compression makes much of.
LONG = " ".join(random.Random(0).choices([f"w{n}" for n in range(9999)], k=40_000))
LINES = b"".join(b'{"text": "%d"}\n' % number for number in range(9))


def refusal(path: Path, limits: Limits | None = None, *, text_field: str = "text") -> DataError:
    """What is said of a file by whoever reads all of it."""
    with pytest.raises(DataError) as caught:
        resolve_sources([str(path)], limits=limits, text_field=text_field).measure()
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 600
    return caught.value


def said(error: DataError) -> str:
    return f"{error.message} {error.hint}"


def cut(data: bytes, share: float = 0.5) -> bytes:
    return data[: int(len(data) * share)]


def flipped(data: bytes, place: float = 0.5) -> bytes:
    changed = bytearray(data)
    changed[int(len(data) * place)] ^= 0xFF
    return bytes(changed)


def encrypted_zip() -> bytes:
    """As a tool with a password would mark it."""
    data = bytearray(zip_of({"a.txt": b"secret"}))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def parquet_of(column: pa.Array, name: str = "text") -> bytes:
    file = io.BytesIO()
    pa.parquet.write_table(pa.table({"id": pa.array(range(len(column))), name: column}), file)
    return file.getvalue()


def feather_of(column: pa.Array) -> bytes:
    file = io.BytesIO()
    pa.feather.write_feather(pa.table({"text": column}), file)
    return file.getvalue()


def not_utf8() -> pa.Array:
    offsets, data = struct.pack("<3i", 0, 1, 2), b"a\xff"
    return pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(data))


def tar_with_long_header() -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 8 << 30
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


BROKEN: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "gzip cut": ("a.txt.gz", cut(gzip.compress(LONG.encode(), mtime=0)), ("gzip", "bytes")),
    "gzip without its end": ("a.txt.gz", gzip.compress(b"text")[:-3], ("gzip", "after 4 bytes")),
    "gzip changed": ("a.jsonl.gz", flipped(gzip.compress(LINES), 0.98), ("gzip",)),
    "bzip2 cut": ("a.txt.bz2", cut(bz2.compress(LONG.encode())), ("bzip2", "after")),
    "bzip2 changed": ("a.txt.bz2", flipped(bz2.compress(LONG.encode())), ("bzip2",)),
    "xz cut": ("a.txt.xz", cut(lzma.compress(LONG.encode())), ("xz", "after")),
    "xz changed": ("a.txt.xz", flipped(lzma.compress(LONG.encode())), ("xz",)),
    "zstd cut": ("a.txt.zst", cut(zstd.compress(LONG.encode())), ("zstd", "after")),
    "zstd changed": ("a.txt.zst", flipped(zstd.compress(LONG.encode()), 0.0), ("zstd",)),
    "another packing": (
        "a.txt.xz",
        gzip.compress(b"text"),
        ("a.txt.xz is not a complete xz file: it is a gzip file", "rename it to end in .gz"),
    ),
    "text called packed": ("a.jsonl.gz", LINES, ("it is text", "rename it without .gz")),
    "text called an archive": ("a.zip", LINES, ("a.zip is not a complete zip file: it is text",)),
    "text called columns": ("a.parquet", LINES, ("not a complete parquet file: it is text",)),
    "columns called other ones": ("a.arrow", parquet([LONG]), ("it is a parquet file",)),
    "zip cut": ("a.zip", cut(zip_of({"a.txt": LONG.encode()})), ("zip",)),
    "zip changed": ("a.zip", flipped(zip_of({"d/a.txt": LONG.encode()})), ("a.zip!d/a.txt",)),
    "zip encrypted": ("a.zip", encrypted_zip(), ("a.zip!a.txt is encrypted", "unpack")),
    "zip of nothing": ("a.zip", zip_of({}), ("a.zip has no text file",)),
    "tar cut in a member": ("a.tar", cut(tar_of({"a.txt": LONG.encode()})), ("tar", "data")),
    "tar cut between members": (
        "a.tar",
        tar_of({"a.txt": b"a", "b.txt": b"b"})[:1024],
        ("no mark of the end", "byte 1024"),
    ),
    "tar cut, packed": ("a.tgz", cut(gzip.compress(tar_of({"a": LONG.encode()}))), ("gzip",)),
    "tar changed": ("a.tar", flipped(tar_of({"a.txt": b"a", "b.txt": b"b"}), 0.11), ("tar",)),
    "tar with a giant header": ("a.tar", tar_with_long_header(), ("header of 8589934592 bytes",)),
    "tar that is none": ("a.tar", LONG.encode(), ("tar",)),
    "parquet cut": ("a.parquet", cut(parquet([LONG])), ("a.parquet", "parquet file")),
    "parquet changed": ("a.parquet", flipped(parquet([LONG]), 0.2), ("a.parquet",)),
    "parquet of nothing": ("a.parquet", b"", ("a.parquet", "parquet file")),
    "parquet without the column": (
        "a.parquet",
        parquet_of(pa.array(["x"]), "body"),
        ("no field 'text'", "'id', 'body'", "--text-field"),
    ),
    "parquet of numbers": ("a.parquet", parquet_of(pa.array([1.5])), ("'text' is double, not t",)),
    "parquet of bytes": ("a.parquet", parquet_of(pa.array([b"\xff"])), ("[0] is not UTF-8",)),
    "parquet of lists": ("a.parquet", parquet_of(pa.array([["x"]])), ("'text' is list",)),
    "parquet with a null": (
        "a.parquet",
        parquet_of(pa.array(["x", None])),
        ("a.parquet[1]", "null"),
    ),
    "arrow cut": ("a.arrow", cut(FORMATS[".arrow"](["a" * 999] * 9)), ("arrow file",)),
    "arrow stream cut": ("a.arrow", cut(FORMATS[".arrow-stream"](["a"] * 9)), ("arrow file",)),
    "arrow of bytes": ("a.feather", feather_of(pa.array([b"\xff"])), ("[0] is not UTF-8",)),
    "arrow that is no UTF-8": (
        "a.feather",
        feather_of(not_utf8()),
        ("Invalid UTF8", "string index 1"),
    ),
    "csv without the column": ("a.csv", b"id,body\n1,x\n", ("no field 'text'", "'id', 'body'")),
    "csv with two such columns": ("a.csv", b"text,text\n1,x\n", ("'text' twice",)),
    "csv with a NUL": ("a.csv", b"text\n" + b"x\n" * 9999 + b"a\0b\n", ("a.csv:10001", "20004")),
    "csv with an open quote": ("a.csv", b'text\n"never\nclosed\n', ("a.csv:2", "end of data")),
    "csv with a stray quote": ("a.csv", b'text\nx\n"a"b\n', ("a.csv:3", "twice")),
    "csv with too few fields": ("a.csv", b"id,text\n1\n", ("a.csv:2", "1 fields", "header 2")),
    "csv with a comma in a text": ("a.csv", b"text\na, b\n", ("a.csv:2", "2 fields", "quoted")),
    "csv that is no UTF-8": ("a.csv", b'text\n"a\n\xe9"\n', ("a.csv:3", "0xe9", "offset 8")),
    "csv of a Mac": ("a.csv", b"text\ra\r", ("a.csv:1",)),
    "tsv without the column": ("a.tsv", b"id\tbody\n1\tx\n", ("'id', 'body'",)),
    "csv as UTF-16": ("a.csv", "text\nx\n".encode("utf-16"), ("is binary", "UTF-16")),
    "json cut": ("a.json", cut(json.dumps(["a", "b" * 99]).encode()), ("not JSON at byte 6",)),
    "json with a comment": ("a.json", b'[{"text": "a"}, // no\n]', ("not JSON at byte 16",)),
    "json after its end": ("a.json", b'["a"] x', ("not JSON at byte 6",)),
    "json of numbers": ("a.json", b'["a", 5]', ("not JSON at byte 6", "neither an object nor")),
    "json without the field": ("a.json", b'[{"body": "a"}]', ("a.json[0]", "'body'")),
    "json of arrays": ("a.json", b'[["a"]]', ("a.json[0]", "not an object")),
    "json of numbers as texts": ("a.json", b'{"text": 5}', ("a.json[0]", "not a string: 5")),
    "json that is no UTF-8": ("a.json", '["é", "'.encode() + b'\xe9"]', ("0xe9 at offset 8",)),
    "json of half a pair": ("a.json", b'["a", "\\ud800"]', ("a.json[1]", "surrogate")),
    "json that is deep": ("a.json", b"[" * 99_999, ("not JSON at byte 1",)),
    "json of a long number": ("a.json", b'{"text": ' + b"9" * 9999 + b"}", ("not a string",)),
    "jsonl in two encodings": ("a.jsonl", LINES + b'{"text": "\xe9"}', ("a.jsonl:10", "0xe9")),
    "text in two encodings": ("a.txt", "é".encode() * 99 + b"\xe9", ("0xe9 at offset 198",)),
    "Latin-1 in a zip": ("a.zip", zip_of({"a.txt": b"caf\xe9"}), ("a.zip!a.txt", "offset 3")),
    "Latin-1 in a tar": ("a.tar", tar_of({"a.txt": b"caf\xe9"}), ("a.tar!a.txt", "offset 3")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    file, data, parts = BROKEN[name]
    (tmp_path / file).write_bytes(data)
    text = said(refusal(tmp_path / file))
    for part in (file, *parts):
        assert part in text


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_cut_of_a_packed_file_is_told(tmp_path: Path, packing: str) -> None:
    whole = PACKINGS[packing](b"some text, " * 9)
    path = tmp_path / f"a.txt{packing}"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert "not a complete" in refusal(path).message


@pytest.mark.parametrize(("name", "of"), [("a.zip", zip_of), ("a.tar", tar_of)])
def test_every_cut_of_an_archive_is_told(
    tmp_path: Path, name: str, of: Callable[[dict[str, bytes]], bytes]
) -> None:
    whole = of({"a.txt": b"text " * 99, "b.jsonl": LINES})
    path = tmp_path / name
    end = len(whole) if name == "a.zip" else len(whole.rstrip(b"\0"))
    for size in range(0, end, 37):
        path.write_bytes(whole[:size])
        assert name in refusal(path).message


@pytest.mark.parametrize("kind", [".parquet", ".feather", ".arrow-stream", ".json-array"])
def test_no_damage_of_a_file_is_anything_but_an_error_of_data(tmp_path: Path, kind: str) -> None:
    whole = FORMATS[kind](["some text", "and more"] * 5)
    path = tmp_path / f"a{kind.partition('-')[0]}"
    choose = random.Random(1)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(choose.randrange(1, 4)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        path.write_bytes(data[: choose.choice([len(data), choose.randrange(len(data))])])
        with suppress(DataError):
            resolve_sources([str(path)]).measure()


def test_binary_is_told_however_little_is_unpacked_at_a_time(tmp_path: Path) -> None:
    data = b"x" * 5000 + b"\0" + b"x" * 5000
    parts = [data[at : at + 100] for at in range(0, len(data), 100)]
    (tmp_path / "a.txt.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    assert "is binary" in refusal(tmp_path / "a.txt.gz").message


@pytest.mark.parametrize("read_bytes", [3, 1 << 20])
def test_an_offset_in_json_is_in_bytes_of_the_file(
    tmp_path: Path, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.data.formats.json_text._READ_BYTES", read_bytes)
    for bad in (b"5]", b"\xff]", b'{"a" 1}]'):
        data = '\ufeff["é😀", "é", '.encode() + bad
        (tmp_path / "a.json").write_bytes(data)
        place = data.index(bad) + (5 if bad.startswith(b"{") else 0)
        message = refusal(tmp_path / "a.json").message
        assert f"byte {place}:" in message or f"at offset {place}" in message


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_bomb_is_refused_where_it_goes_off(tmp_path: Path, packing: str) -> None:
    limits = Limits(longest_bytes=1 << 16, unpacked_bytes=1 << 20, unpacked_ratio=100)
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(PACKINGS[packing](b"x" * (3 << 20)))
    assert "unpacks to more than 1 MiB" in refusal(path, limits).message
    path.write_bytes(PACKINGS[packing](os.urandom(600_000).hex().encode()))
    resolve_sources([str(path)], limits=limits).measure()  # large, but no bomb


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.zip", zip_of({f"{n}.txt": b"x" * (1 << 19) for n in range(9)})),
        ("a.zip", zip_of({"a.txt.gz": gzip.compress(b"x" * (4 << 20), mtime=0)})),
        (
            "a.zip",
            zip_of({"a.jsonl.gz": gzip.compress(b"x" * (4 << 20), mtime=0)}, zipfile.ZIP_STORED),
        ),
        ("a.tgz", gzip.compress(tar_of({"a.png": b"x" * (4 << 20)}))),
        ("a.tar.xz", lzma.compress(tar_of({"a.txt.gz": gzip.compress(b"x" * (4 << 20), mtime=0)}))),
        ("a.csv.bz2", bz2.compress(b"text\n" + b"x\n" * 600_000)),
    ],
    ids=["members", "gzip in zip", "gzip stored in zip", "skipped", "gzip in tar", "rows"],
)
def test_a_bomb_in_layers_is_refused_whole(tmp_path: Path, name: str, data: bytes) -> None:
    limits = Limits(longest_bytes=8 << 20, unpacked_bytes=1 << 20, unpacked_ratio=100)
    (tmp_path / name).write_bytes(data)
    assert "unpacks to more than" in refusal(tmp_path / name, limits).message


def test_a_bomb_of_columns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(["x" * (4 << 20)]))
    resolve_sources([str(tmp_path / "a.parquet")]).measure()
    monkeypatch.setattr("llmtrain.data.formats.columns._GROUP_BYTES", 1 << 20)
    monkeypatch.setattr("llmtrain.data.formats.columns._GROUP_RATIO", 2)
    assert "a row group that unpacks to 4 MiB" in refusal(tmp_path / "a.parquet").message


LATE = ["csv with a NUL", "gzip cut", "Latin-1 in a tar", "parquet with a null", "zip changed"]


@pytest.mark.parametrize("name", LATE)
def test_what_is_broken_late_leaves_nothing_behind(
    tmp_path: Path, name: str, prepare_data: Prepare, entries: Callable[[], list[str]]
) -> None:
    file, data, parts = BROKEN[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.txt").write_text("good text\n" * 999)
    (tmp_path / "in" / file).write_bytes(data)
    with pytest.raises(DataError, match=re.escape(parts[0])):
        prepare_data(tmp_path / "in")
    assert entries() == []


@pytest.mark.parametrize("kind", [".jsonl", ".json-array", ".csv", ".parquet", ".feather"])
def test_a_record_that_is_too_long_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind.partition('-')[0]}"
    path.write_bytes(FORMATS[kind](["short", "x" * 5000]))
    assert "longer than 0.977 KiB" in refusal(path, Limits(longest_bytes=1000)).message


def test_a_row_of_many_lines_is_bounded_as_a_long_line_is(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text\nx\n"' + b"line\n" * 500)
    error = refusal(path, Limits(longest_bytes=1000))
    assert "a.csv:3: the row is longer" in error.message
    assert "quote" in str(error.hint)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("a.parquet", "pyarrow", "parquet"),
        ("a.txt.zst", zstd.__name__, "zstd"),
        ("a.txt.xz", "lzma", ""),
        ("a.txt.bz2", "bz2", ""),
    ],
)
def test_a_library_that_is_not_there_is_named_by_its_extra(
    tmp_path: Path, name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = Path(name).suffix
    data = PACKINGS[packing](b"x") if packing in PACKINGS else parquet(["x"])
    (tmp_path / name).write_bytes(data)
    resolve_sources([str(tmp_path)])
    package, _, last = module.rpartition(".")
    if package:
        monkeypatch.delattr(sys.modules[package], last)
    monkeypatch.setitem(sys.modules, module, None)
    for spec in (tmp_path, tmp_path / name):
        error = refusal(spec)
        assert f"{name} takes a library that is not installed" in error.message
        said = f"pip install 'llmtrain[{extra}]'" if extra else "take a Python that has it"
        assert said in str(error.hint)


@posix
def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    for name, data in (("a.txt", b"x\n" * 600_000), ("a.jsonl", LINES * 50_000)):
        path = tmp_path / name
        path.write_bytes(data)
        documents = resolve_sources([str(path)], limits=Limits(longest_bytes=1000)).documents()
        next(documents)
        os.truncate(path, 300_000)
        with pytest.raises(DataError, match="shrank while it was read") as caught:
            list(documents)
        assert f"{len(data)} bytes before, 300000 now" in caught.value.message


@posix
@pytest.mark.parametrize("kind", [".parquet", ".feather", ".zip", ".tar"])
def test_a_container_that_shrinks_while_it_is_read_is_told(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.data.formats.columns._BATCH_BYTES", 1 << 17)
    path = tmp_path / f"a{kind}"
    path.write_bytes(FORMATS[kind]([os.urandom(60_000).hex() for _ in range(12)]))
    documents = resolve_sources([str(path)]).documents()
    next(documents)
    os.truncate(path, 150_000)
    with pytest.raises(DataError, match=f"a{kind}"):
        list(documents)


def test_a_packed_file_of_nothing_is_not_complete(tmp_path: Path) -> None:
    for packing in PACKINGS:
        (tmp_path / f"a.txt{packing}").write_bytes(b"")
        assert "it is empty" in refusal(tmp_path / f"a.txt{packing}").message


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_an_empty_file_has_no_text(tmp_path: Path, name: str) -> None:
    for data in (b"", b"\n" if name != "a.txt" else b""):
        (tmp_path / name).write_bytes(data)
        assert "there is no text" in refusal(tmp_path / name).message
    (tmp_path / "more.txt").write_text("text")
    assert resolve_sources([str(tmp_path)]).measure().documents == 1


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.parquet", "a.zip"])
def test_what_is_damaged_is_not_passed_over_in_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "good.txt").write_text("text")
    data = {"a.csv": b'text\n"a', "a.json": b'["a", "b', "a.jsonl": b'{"text": "a"}\n{"tex'}
    (tmp_path / name).write_bytes(data.get(name, b"PK\3\4"))
    assert name in refusal(tmp_path).message


def test_records_without_the_field_are_skipped_in_a_directory_and_counted(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "tsconfig.json").write_text("{ // a comment\n}")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a.parquet").write_bytes(parquet_of(pa.array(["x"]), "body"))
    (tmp_path / "a.zip").write_bytes(zip_of({"b.csv": b"a,b\n1,2\n", "c.txt": b"in the zip"}))
    (tmp_path / "main.py").write_text("print()")
    corpus = resolve_sources([str(tmp_path)])
    assert [document.text for document in corpus.documents()] == ["in the zip", "print()"]
    assert corpus.describe()[0]["skipped"] == {
        "no JSON of objects or strings": 1,
        "no field 'text'": 4,
    }
    bodies = resolve_sources([str(tmp_path / "*.parquet")], text_field="body")
    assert [document.text for document in bodies.documents()] == ["x"]
    (tmp_path / "main.py").unlink()
    (tmp_path / "a.zip").unlink()
    assert "3 skipped: no field 'text'" in refusal(tmp_path).message


def test_a_field_that_is_there_twice_is_no_text(tmp_path: Path) -> None:
    """Python would keep the last; another field may be."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "id": 2, "text": "one"}\n{"text": "two", "text": "three"}\n')
    corpus = resolve_sources([str(path)])
    documents = corpus.documents()
    assert next(documents).text == "one"
    with pytest.raises(DataError, match=r"a\.jsonl:2 has field 'text' more than once"):
        next(documents)
