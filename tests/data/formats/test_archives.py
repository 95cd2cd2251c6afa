"""Members of an archive are read as the files of a directory are, and nothing leaves it."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.data.corpus import Corpus
from llmtrain.data.document import Limits
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError
from tests.data.making import parquet, tar_of, zip_of

Archive = Callable[[dict[str, bytes]], bytes]
both = pytest.mark.parametrize(("name", "of"), [("a.zip", zip_of), ("a.tar", tar_of)])
MEMBERS = {
    "./b.txt": b"b",
    "d/a.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    ".hidden": b"no",
    "d/.git/config": b"no",
    "__MACOSX/._b.txt": b"no",
    "d/image.png": b"no NUL",
    "d/data": b"a\0b",
    "d/in.zip": zip_of({"a.txt": b"no"}),
    "d/in.tar.gz": b"no",
    "t.parquet": parquet(["no"]),
    "../out.txt": b"no",
    "/etc/out.txt": b"no",
    "C:\\out.txt": b"no",
    "empty.txt": b"",
}


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


@both
def test_members_are_read_and_what_is_no_text_is_counted(
    tmp_path: Path, name: str, of: Archive
) -> None:
    path = tmp_path / name
    path.write_bytes(of(MEMBERS))
    corpus = resolve_sources([str(path)])
    assert [(d.origin, d.text) for d in corpus.documents()] == [
        (f"{path}!b.txt", "b"),
        (f"{path}!d/a.jsonl:1", "one"),
        (f"{path}!d/a.jsonl:2", "two"),
    ]
    assert corpus.describe()[0]["skipped"] == {
        ".parquet that is packed; unpack it first": 1,
        "an archive in an archive": 2,
        "an unsafe name": 3,
        "binary": 2,
    }
    assert list(tmp_path.iterdir()) == [path]


@both
def test_an_archive_is_a_file_of_a_directory_and_of_a_glob(
    tmp_path: Path, name: str, of: Archive
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(of({"x/b.txt": b"b", "x/c.md": b"c"}))
    (tmp_path / "d" / "z.txt").write_text("z")
    assert texts(resolve_sources([str(tmp_path)])) == ["b", "c", "z"]
    assert texts(resolve_sources([str(tmp_path / "*" / name)])) == ["b", "c"]


@both
def test_members_are_chosen_as_files_are(tmp_path: Path, name: str, of: Archive) -> None:
    path = tmp_path / name
    path.write_bytes(of({"a.txt": b"a", "docs/b.md": b"b", "docs/old/c.md": b"c"}))
    assert texts(resolve_sources([str(path)], include=["*.md"], exclude=["old/"])) == ["b"]
    assert texts(resolve_sources([str(path)], exclude=["docs/"])) == ["a"]
    with pytest.raises(DataError, match=r"has no text file \(3 skipped: not in data.include\)"):
        resolve_sources([str(path)], include=["*.rst"])


def test_links_and_devices_of_a_tar_are_skipped(tmp_path: Path) -> None:
    file = io.BytesIO()
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, kind in enumerate(kinds):
            header = tarfile.TarInfo(f"{number}.txt")
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
        header = tarfile.TarInfo("d")
        header.type = tarfile.DIRTYPE
        archive.addfile(header)
        long_name = tarfile.TarInfo("é" * 200 + ".txt")
        long_name.size = 1
        archive.addfile(long_name, io.BytesIO(b"x"))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    corpus = resolve_sources([str(tmp_path / "a.tar")])
    assert texts(corpus) == ["x"]
    assert corpus.describe()[0]["skipped"] == {"a link": 2, "not a regular file": 2}


def test_links_of_a_zip_are_skipped(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("d/", "")
        archive.writestr("a.txt", "a")
    corpus = resolve_sources([str(tmp_path / "a.zip")])
    assert texts(corpus) == ["a"]
    assert [(s.origin[-8:], s.reason) for s in corpus.skipped] == [("link.txt", "a link")]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_may_be_packed_in_every_way_of_the_library(tmp_path: Path, method: int) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of({"a.txt": b"text " * 999}, method))
    assert texts(resolve_sources([str(tmp_path / "a.zip")])) == ["text " * 999]


@both
def test_a_long_member_is_read_in_parts(tmp_path: Path, name: str, of: Archive) -> None:
    (tmp_path / name).write_bytes(of({"a.txt": b"line\n" * 999}))
    corpus = resolve_sources([str(tmp_path / name)], limits=Limits(longest_bytes=1000))
    assert "".join(texts(corpus)) == "line\n" * 999
    assert len(texts(corpus)) == 5


@both
def test_a_member_that_is_bad_is_named(tmp_path: Path, name: str, of: Archive) -> None:
    (tmp_path / name).write_bytes(of({"a.txt": b"a", "d/b.jsonl": b'{"text": "a"}\n{"te'}))
    with pytest.raises(DataError) as caught:
        texts(resolve_sources([str(tmp_path / name)]))
    assert f"{name}!d/b.jsonl:2 is not JSON" in caught.value.message
