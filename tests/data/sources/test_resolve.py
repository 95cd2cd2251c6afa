from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from llmtrain.data import reading
from llmtrain.data.corpus import Corpus
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError, UsageError


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


@contextmanager
def data_error(*parts: str) -> Iterator[None]:
    """The block raises DataError whose message or hint has every one of `parts`."""
    with pytest.raises(DataError) as caught:
        yield
    said = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message
    for part in parts:
        assert part in said


def test_text_comes_out_as_it_is(tmp_path: Path) -> None:
    strange = "\ufeffa\r\nb\rc\u2028\x1ae\u0301😀"
    corpus = resolve_sources([str(write(tmp_path / "a.txt", strange))])
    assert texts(corpus) == [strange]


def test_directory_is_sorted_and_skips_what_is_no_text(tmp_path: Path) -> None:
    for name in ("b.txt", "B.txt", "a/z.md", "a.txt", "a/b/c.py"):
        write(tmp_path / name, name)
    write(tmp_path / ".hidden", "no")
    write(tmp_path / ".git/config", "no")
    write(tmp_path / "data.txt", b"text\0binary")
    write(tmp_path / "image.png", b"no NUL")
    write(tmp_path / "table.xlsx", b"no NUL")
    corpus = resolve_sources([str(tmp_path)])
    if not sys.platform.startswith(("win", "darwin")):
        assert texts(corpus) == ["B.txt", "a/b/c.py", "a/z.md", "a.txt", "b.txt"]
    assert {(Path(s.origin).name, s.reason) for s in corpus.skipped} == {
        ("data.txt", "binary"),
        ("image.png", "binary"),
        ("table.xlsx", "binary"),
    }
    assert corpus.describe()[0]["skipped"] == {"binary": 3}


@pytest.mark.skipif(os.name == "nt", reason="symlinks need a privilege")
def test_linked_directories_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "in/a.txt", "a")
    write(tmp_path / "out/b.txt", "b")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/out").symlink_to(tmp_path / "out")
    (tmp_path / "in/broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in/file.txt").symlink_to(tmp_path / "out/b.txt")
    corpus = resolve_sources([str(tmp_path / "in")])
    assert texts(corpus) == ["a", "b"]
    linked = ["a link to a directory"] * 2
    assert sorted(s.reason for s in corpus.skipped) == [*linked, "not a regular file"]
    assert texts(resolve_sources([str(tmp_path / "in/**/*.txt")])) == ["a", "b"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.md", ["top.md"]),
        ("**/*.md", ["docs/a.md", "docs/deep/b.md", "top.md"]),
        ("docs/**/*.md", ["docs/a.md", "docs/deep/b.md"]),
        ("docs/**", ["docs/a.md", "docs/c.txt", "docs/deep/b.md"]),
        ("d*", ["docs/a.md", "docs/c.txt", "docs/deep/b.md"]),
        ("docs/?.[mt]*", ["docs/a.md", "docs/c.txt"]),
        ("*/deep/b.md", ["docs/deep/b.md"]),
        (".h*/*.md", [".hidden/d.md"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, names: list[str]) -> None:
    for name in ("top.md", "docs/a.md", "docs/deep/b.md", "docs/c.txt", ".hidden/d.md"):
        write(tmp_path / name, name)
    assert texts(resolve_sources([str(tmp_path / pattern)])) == names


def test_a_name_that_looks_like_a_glob_is_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", "one")
    assert texts(resolve_sources([str(path)])) == ["one"]


def test_relative_specs_and_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.txt", "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for spec in ("a.txt", "*.txt", ".", "~/a.txt"):
        assert texts(resolve_sources([spec])) == ["a"]


def test_a_file_named_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a.txt", "a")
    corpus = resolve_sources([str(tmp_path / "b.txt"), str(tmp_path), str(tmp_path / "*.txt")])
    assert texts(corpus) == ["b", "a"]
    assert [len(source.files) for source in corpus.sources] == [1, 1, 0]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_gzip_is_the_same_text_and_the_same_fingerprint(tmp_path: Path, name: str) -> None:
    data = b'{"text": "a"}\n{"text": "b"}\n'
    plain = resolve_sources([str(write(tmp_path / name, data))])
    packed = resolve_sources([str(write(tmp_path / f"{name}.gz", gzip.compress(data)))])
    assert texts(plain) == texts(packed)
    assert plain.measure().fingerprint == packed.measure().fingerprint


def test_fingerprint_is_of_the_content_and_where_it_ends(tmp_path: Path) -> None:
    def fingerprint(directory: str, *contents: str) -> str:
        for number, content in enumerate(contents):
            write(tmp_path / directory / f"{number}.txt", content)
        return resolve_sources([str(tmp_path / directory)]).measure().fingerprint

    first = fingerprint("one", "ab", "c")
    assert first == fingerprint("two", "ab", "c")
    assert len({first, fingerprint("x", "a", "bc"), fingerprint("y", "c", "ab")}) == 3


def test_missing_path_offers_a_close_name(tmp_path: Path) -> None:
    write(tmp_path / "shakespeare.txt", "x")
    with data_error("shakespear.txt", "did you mean", "shakespeare.txt"):
        resolve_sources([str(tmp_path / "shakespear.txt")])
    with data_error("nowhere", "does not exist"):
        resolve_sources([str(tmp_path / "nowhere/a.txt")])


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "d/image.png", b"\0")
    with data_error("directory", "no text file", "1 skipped: binary"):
        resolve_sources([str(tmp_path / "d")])
    with data_error("glob", "*.rst", "no text file"):
        resolve_sources([str(tmp_path / "*.rst")])
    with data_error("no text", "empty"):
        resolve_sources([str(write(tmp_path / "empty.txt", ""))]).measure()


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("a.txt", b"a\0b", "binary"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
        ("a.pdf", b"%PDF", "binary"),
        ("a.txt.gz", gzip.compress(b"a\0b", mtime=0), "binary"),
        ("a.tar.gz", gzip.compress(b"ab", mtime=0), "not a complete tar file"),
        ("a.parquet", b"PAR1", "not a complete parquet file"),
        ("a.parquet.gz", b"PAR1", "unpack it first"),
        ("a.jsonl.zst", b"zst", "not a complete zstd file"),
    ],
)
def test_a_named_file_that_is_no_text_is_an_error(
    tmp_path: Path, name: str, data: bytes, part: str
) -> None:
    with data_error(name, part):
        resolve_sources([str(write(tmp_path / name, data))])


@pytest.mark.parametrize("spec", ["ftp://host/key", "file:///a.txt", "builtin:ruby"])
def test_other_schemes_say_what_is_supported(spec: str) -> None:
    with data_error(spec, ".jsonl", "directory", "glob", "builtin:python"):
        resolve_sources([spec])


@pytest.mark.parametrize("specs", [[], [""]])
def test_no_spec_is_a_usage_error(specs: list[str]) -> None:
    with pytest.raises(UsageError):
        resolve_sources(specs)


def test_unreadable_files_and_directories_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "d/a.txt", "x")

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, data_error("a.txt", "Permission denied"):
        patch.setattr(reading, "open_regular", refuse)
        resolve_sources([str(path)])
    with monkeypatch.context() as patch, data_error(str(path.parent), "Permission denied"):
        patch.setattr(os, "scandir", refuse)
        resolve_sources([str(path.parent)])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    os.mkfifo(tmp_path / "pipe")
    assert texts(resolve_sources([str(tmp_path)])) == ["a"]
    with data_error("pipe", "not a regular file"):
        resolve_sources([str(tmp_path / "pipe")])


def test_one_file_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write(tmp_path / f"{number}.txt", str(number))
    corpus = resolve_sources([str(tmp_path)])
    opened: list[str] = []
    whole = reading.open_regular

    def counted(path: Path, **options: bool) -> BinaryIO:
        opened.append(path.name)
        return whole(path, **options)

    monkeypatch.setattr(reading, "open_regular", counted)
    documents = corpus.documents()
    next(documents)
    next(documents)
    assert len(opened) == 2


def test_the_standard_library_is_a_corpus() -> None:
    corpus = resolve_sources(["builtin:python"])
    (record,) = corpus.describe()
    facts = corpus.measure()
    assert facts.text_bytes > 5_000_000
    assert record["python_version"] == sys.version.split()[0]
    assert record["text_bytes"] == facts.text_bytes
    assert record["sha256"] == facts.fingerprint
    origins = [file.origin for file in corpus.sources[0].files]
    assert origins == sorted(origins, key=lambda origin: origin.split("/"))
    assert "builtin:python/os.py" in origins
    assert not [o for o in origins if "site-packages" in o or "dist-packages" in o]
    assert all(skipped.reason == "undecodable" for skipped in corpus.skipped)
