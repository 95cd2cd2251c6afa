"""Text that is none, too long, or not there any more: a DataError or a skip that is told."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain.data.document import Limits
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.split import plan_split
from llmtrain.errors import DataError

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
PART_BYTES = 1000
SHORT_PARTS = Limits(longest_bytes=PART_BYTES)  # a text of 1,000 bytes is a long one


def texts(*specs: Path, limits: Limits | None = None) -> list[str]:
    corpus = resolve_sources([str(spec) for spec in specs], limits=limits)
    return [document.text for document in corpus.documents()]


def refusal(*specs: Path, limits: Limits | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        texts(*specs, limits=limits)
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message
    return caught.value


BAD: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "NUL in front": ("a.txt", b"text\0text", ("is binary",)),
    "image": ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ("is a PNG image",)),
    "UTF-16": ("a.txt", "text".encode("utf-16"), ("is binary", "iconv")),
    "binary without NUL": ("a.txt", bytes(range(1, 256)) * 40, ("0x80", "offset 127")),
    "Latin-1 after UTF-8": ("a.txt", "é".encode() * 9000 + b"caf\xe9 ", ("0xe9", "offset 18003")),
    "UTF-8 of half a pair": ("a.txt", b"a\xed\xa0\x80", ("0xed", "offset 1")),
    "cut character": ("a.txt", "é".encode()[:1], ("0xc3", "offset 0")),
    "gzip in text": ("a.txt", gzip.compress(b"x" * 99, mtime=0)[3:], ("is binary",)),
    "NUL in a key": ("a.jsonl", b'{"text": "a"}\n{"te\\u0000xt": "a"}\n', ("a.jsonl:2",)),
    "number of digits": ("a.jsonl", b'{"text": ' + b"9" * 9999 + b"}\n", ("a.jsonl:1",)),
    "deep": ("a.jsonl", b'{"text": ' + b"[" * 99_999 + b"\n", ("a.jsonl:1", "not JSON")),
    "half a pair": ("a.jsonl", b'{"text": "\\udc00"}\n', ("a.jsonl:1", "surrogate")),
    "two encodings": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', ("a.jsonl:2", "0xe9")),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    file, data, parts = BAD[name]
    (tmp_path / file).write_bytes(data)
    error = refusal(tmp_path / file)
    for part in (file, *parts):
        assert part in f"{error.message} {error.hint}"


def test_a_late_nul_is_text(tmp_path: Path) -> None:
    text = "a" * 9000 + "\0b"
    (tmp_path / "a.txt").write_text(text)
    assert texts(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("line", ["x", "é😀", "word " * 30 + "\n", "\n"], ids=repr)
@pytest.mark.parametrize("size", [999, 1000, 1001, 2000, 9876])
def test_a_long_text_is_read_in_parts_that_join_to_it(
    tmp_path: Path, line: str, size: int, suffix: str
) -> None:
    whole = (line * size).encode()[:size].decode(errors="ignore")
    data = whole.encode()
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    documents = list(resolve_sources([str(path)], limits=SHORT_PARTS).documents())
    assert "".join(document.text for document in documents) == whole
    offsets = [document.part_at for document in documents]
    if len(data) < PART_BYTES:
        assert offsets == [None]
        return
    for document, offset in zip(documents, offsets, strict=True):
        assert offset is not None
        assert len(document.text.encode()) <= PART_BYTES
        assert data[offset:].startswith(document.text.encode())
    if "\n" in line:
        assert all(document.text.endswith("\n") for document in documents[:-1])


def test_the_offset_of_what_is_no_utf8_counts_from_the_front(tmp_path: Path) -> None:
    for place in (0, 999, 1000, 2500, 4999):
        data = bytearray(b"x" * 5000)
        data[place] = 0xE9
        (tmp_path / "a.txt").write_bytes(data)
        assert f"0xe9 at offset {place}" in refusal(tmp_path / "a.txt", limits=SHORT_PARTS).message
        (tmp_path / "a.txt").write_bytes(b"\x80" * 5000)
        assert "0x80 at offset 0" in refusal(tmp_path / "a.txt", limits=SHORT_PARTS).message


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("parts", [1, 3, 31, 65, 90, 500])
def test_parts_are_split_as_evenly_as_a_whole(tmp_path: Path, parts: int, fraction: float) -> None:
    lines = [f"{number:09d}\n" for number in range(parts * PART_BYTES // 10 + 7)]
    (tmp_path / "a.txt").write_text("".join(lines))
    corpus = resolve_sources([str(tmp_path / "a.txt")], limits=SHORT_PARTS)
    split = plan_split(corpus, corpus.measure(), fraction)
    pieces = list(split.assign(corpus.documents()))
    assert "".join(piece.document.text for piece in pieces) == "".join(lines)
    held_out = sum(len(p.document.text) for p in pieces if p.side == "validation")
    assert held_out / (10 * len(lines)) == pytest.approx(fraction, rel=0.35)


def test_a_line_of_json_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 900}) + "\n" + json.dumps({"text": "x" * 1000}))
    error = refusal(path, limits=SHORT_PARTS)
    assert "a.jsonl:2 is longer than 0.977 KiB" in error.message
    assert ".txt" in str(error.hint)


CHILD = """
import resource, sys
from pathlib import Path
from typing import Any
from llmtrain.data.document import Limits
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.split import plan_split
from llmtrain.errors import DataError
limits = Limits(longest_bytes=1 << 20)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
try:
    corpus = resolve_sources([sys.argv[1]], limits=limits)
    facts = corpus.measure()
    for piece in plan_split(corpus, facts, 0.1).assign(corpus.documents()): pass
except DataError as error: print(error.message)
else: print(facts.text_bytes)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another")
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz"])
def test_a_single_line_takes_no_more_memory_than_a_part(tmp_path: Path, name: str) -> None:
    size = 64 << 20
    data = b"x" * size if "jsonl" not in name else b'{"text": "' + b"x" * size + b'"}'
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True
    )
    said, grown = done.stdout.splitlines()
    assert said == (str(size) if "jsonl" not in name else f"{path}:1 is longer than 1 MiB")
    assert int(grown) < 20 << 20


Change = Callable[[Path], object]


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, tuple[Change, str]] = {
    "gone": (Path.unlink, "No such file"),
    "pipe": (to_pipe, "not an ordinary file"),
    "loop": (to_loop, "symbolic links"),
    "directory": (to_directory, "it is a directory"),
    "other encoding": (lambda path: path.write_bytes(b"caf\xe9"), "0xe9"),
}


@posix
@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changes_after_it_was_found_is_named(tmp_path: Path, name: str) -> None:
    change, said = CHANGES[name]
    for file in "abc":
        (tmp_path / f"{file}.txt").write_text(file)
    documents = resolve_sources([str(tmp_path)]).documents()
    assert next(documents).text == "a"
    change(tmp_path / "b.txt")
    with pytest.raises(DataError, match=r"b\.txt") as caught:
        next(documents)
    assert said in caught.value.message


def test_stars_in_a_row_find_a_file_in_one_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    (deep / "x.txt").write_text("x")
    looks: list[object] = []
    scan = os.scandir

    def counted(path: object) -> Any:
        looks.append(path)
        return scan(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", counted)
    assert texts(tmp_path.joinpath(*["**"] * 12, "x.txt")) == ["x"]
    assert texts(tmp_path.joinpath("**", "c", "**", "**", "x.txt")) == ["x"]
    assert len(looks) < 100


@posix
def test_what_is_no_file_is_skipped_in_a_directory_and_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("/dev/zero")
    (tmp_path / "d.txt").symlink_to(tmp_path / "d.txt")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "up").symlink_to(tmp_path)
    (tmp_path / "f.txt").symlink_to("nowhere")
    corpus = resolve_sources([str(tmp_path)])
    assert [document.text for document in corpus.documents()] == ["a"]
    reasons = [skipped.reason for skipped in corpus.skipped]
    assert reasons == [*["not a regular file"] * 3, "a link to a directory", "not a regular file"]
    for name in ("b.txt", "c.txt"):
        assert "not a regular file" in refusal(tmp_path / name).message
    for name in ("d.txt", "f.txt"):
        assert "is a link that leads nowhere" in refusal(tmp_path / name).message


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user can look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@posix
def test_what_may_not_be_read_is_named(open_place: Path) -> None:
    nobody, user = 65534, os.geteuid()
    (open_place / "a.txt").write_text("a")
    (open_place / "d").mkdir()
    (open_place / "d" / "b.txt").write_text("b")
    for path in (open_place / "a.txt", open_place / "d"):
        path.chmod(0)
        if user == 0:  # who may read everything
            os.seteuid(nobody)
        try:
            error = refusal(open_place)
        finally:
            os.seteuid(user)
        assert error.message == f"cannot read {path}: Permission denied"
        path.chmod(0o755)


@posix
def test_a_name_that_is_not_unicode_is_told(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_bytes(b"\xff")
    except OSError:
        pytest.skip("names are Unicode here")
    assert r"caf\udce9.txt is not UTF-8" in ascii(refusal(tmp_path).message)
