"""Records that are text in other forms, files under wrong names, and records that are bad."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note
from llmtrain.train.events import Event
from tests.data.making import tar_of, zip_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WRONG_NAMES = {
    "gzip": (gzip.compress(b"text" * 99), "a gzip file, not text", ".gz"),
    "bzip2": (bz2.compress(b"text" * 99), "a bzip2 file", ".bz2"),
    "xz": (lzma.compress(b"text" * 99), "an xz file", ".xz"),
    "zip": (zip_of({"a.txt": b"text"}), "a zip file", ".zip"),
    "tar": (tar_of({"a.txt": b"text"}), "a tar file", ".tar"),
    "PDF": (b"%PDF-1.7\n1 0 obj\n", "a PDF file", "pdftotext"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image", ""),
    "JPEG": (b"\xff\xd8\xff\xe0JFIF", "a JPEG image", ""),
    "GIF": (b"GIF89a\xf0\xf1\0", "a GIF image", ""),
    "LFS": (POINTER, "a Git LFS pointer", "git lfs pull"),
}


def texts(path: Path, text_field: str = "text") -> list[str]:
    corpus = resolve_sources([str(path)], text_field=text_field)
    return [document.text for document in corpus.documents()]


@pytest.mark.parametrize(("data", "what", "advice"), WRONG_NAMES.values(), ids=list(WRONG_NAMES))
@pytest.mark.parametrize("name", ["a.txt", "a", "a.jsonl", "a.csv", "a.json"])
def test_a_file_under_a_wrong_name_is_named_as_what_it_is(
    tmp_path: Path, data: bytes, what: str, advice: str, name: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name} is {what}") as caught:
        resolve_sources([str(tmp_path / name)])
    assert advice in str(caught.value.hint)
    (tmp_path / "b.txt").write_text("text")
    corpus = resolve_sources([str(tmp_path)])
    assert [document.text for document in corpus.documents()] == ["text"]
    (reason,) = corpus.skipped_by_reason
    assert reason.startswith(what)


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.gz", "a.zip", "a.arrow"])
def test_a_pointer_is_named_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(DataError, match="is a Git LFS pointer"):
        resolve_sources([str(tmp_path / name)])


@pytest.mark.parametrize("text", ["GIF89a is a format", "BMW and PAR1", "II*", "PK, he said"])
def test_text_that_begins_like_something_else_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert texts(tmp_path / "a.txt") == [text]


def test_what_is_proposed_for_quotes_of_windows_keeps_them(tmp_path: Path) -> None:
    data = "“quotes” – and é".encode("cp1252")
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match="not UTF-8") as caught:
        texts(tmp_path / "a.txt")
    assert "iconv -f WINDOWS-1252 " in str(caught.value.hint)


def test_bare_strings_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"one"\n{"text": "two"}\n')
    assert texts(tmp_path / "a.jsonl") == ["one", "two"]
    assert texts(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_an_integer_may_have_any_length(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f'{{"id": {"9" * 5000}, "text": "one"}}\n')
    assert texts(tmp_path / name) == ["one"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_field_inside_a_field(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"meta": {"content": "one", "more": {"x": "two"}}}\n')
    assert texts(tmp_path / name, "meta.content") == ["one"]
    assert texts(tmp_path / name, "meta.more.x") == ["two"]
    with pytest.raises(DataError, match="meta has no field 'body'; it has 'content', 'more'"):
        texts(tmp_path / name, "meta.body")
    (tmp_path / name).write_text('{"meta.content": "whole", "meta": {"content": "one"}}\n')
    assert texts(tmp_path / name, "meta.content") == ["whole"]


def column_file(directory: Path, name: str, table: pa.Table) -> Path:
    sink = io.BytesIO()
    if name.endswith(".parquet"):
        pa.parquet.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    (directory / name).write_bytes(sink.getvalue())
    return directory / name


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_column_inside_a_column(tmp_path: Path, name: str) -> None:
    table = pa.table({"id": [1, 2], "meta": [{"content": "one", "n": 1}, {"content": "two"}]})
    path = column_file(tmp_path, name, table)
    assert texts(path, "meta.content") == ["one", "two"]
    with pytest.raises(DataError, match="meta has no field 'body'; it has 'content', 'n'"):
        texts(path, "meta.body")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_that_are_utf_8_are_text(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    good = pa.table({"text": pa.array(["é".encode(), b"b"], kind)})
    assert texts(column_file(tmp_path, name, good)) == ["é", "b"]
    bad = pa.table({"text": pa.array([b"a", b"\xff"], kind)})
    with pytest.raises(DataError, match=r"\[1\] is not UTF-8"):
        texts(column_file(tmp_path, name, bad))


HEADED = '{"schema": 1, "rows": 2}\n{"text": "one"}\n{"text": "two"}\n'


def test_a_header_record_is_an_error_in_a_directory_as_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "d/a.jsonl"
    path.parent.mkdir()
    path.write_text(HEADED)
    for spec in (path, path.parent):
        with pytest.raises(DataError, match=r"a\.jsonl:1 has no field 'text'"):
            resolve_sources([str(spec)])


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        ("a.jsonl", HEADED, 1),
        ("a.jsonl", '{"text": "one"}\n{"tex\n{"text": 5}\n{"text": "two"}\n', 2),
        ("a.jsonl", '{"text": "one"}\n\udcff\udcfe\n{"text": "two"}\n', 1),
        ("a.json", '[{"text": "one"}, 5.5e1, {"text": null}, {"text": "two"}]', None),
        ("a.json", '[{"text": "one"}, {"no": 1}, {"text": null}, {"text": "two"}]', 2),
        ("a.csv", "id,text\n1,one\n2\n3,two\n", 1),
    ],
)
def test_bad_records_can_be_left_out_and_are_counted(
    tmp_path: Path, name: str, content: str, bad: int | None, below: bool
) -> None:
    path = tmp_path / "d" / name
    path.parent.mkdir()
    path.write_bytes(content.encode(errors="surrogateescape"))
    spec = str(path.parent if below else path)
    found: list[DataError] = []
    corpus = resolve_sources([spec], skips_bad=True)
    if bad is None:  # what follows cannot be found again
        with pytest.raises(DataError):
            corpus.measure()
        return
    assert [d.text for d in corpus.counting(found.append).documents()] == ["one", "two"]
    assert [d.text for d in corpus.documents()] == ["one", "two"]
    assert len(found) == bad
    with pytest.raises(DataError):
        resolve_sources([spec]).measure()


def test_files_that_are_no_utf_8_can_be_left_out_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"text")
    corpus = resolve_sources([str(tmp_path)], skips_bad=True)
    assert [document.text for document in corpus.documents()] == ["text"]


def test_what_is_left_out_is_said_with_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    lines = [json.dumps({"text": f"words of line {number}\n"}) for number in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{", "{"]))
    events: list[Event] = []
    section = DataSection(sources=(str(tmp_path / "a.jsonl"),), on_error="skip")
    dataset = prepare_dataset(section, 300, PrepareContext(1, events.append, lambda: None))
    dataset.shards.close()
    notes = [each.text for each in events if isinstance(each, Note)]
    (note,) = (each for each in notes if each.startswith("left out"))
    assert note.startswith("left out 2 documents that cannot be used (data.on_error: skip)")
    assert "a.jsonl:201 is not JSON" in note
    assert [tally.documents for tally in dataset.left_out] == [2]
