"""A file holds the old text or the new one, never a part, and hashes are those of the bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from llmtrain.files import (
    cache_directory,
    created,
    sha256_file,
    sync_directory,
    sync_file,
    write_json,
    write_text_atomically,
)


def test_text_is_written_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "é\nline\r\nend without newline"
    write_text_atomically(path, text)
    write_text_atomically(path, text)
    assert path.read_bytes() == text.encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_written_with_sorted_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1], "a": "ü"})
    assert (tmp_path / "a.json").read_bytes() == (
        b'{\n  "a": "\\u00fc",\n  "b": [\n    1\n  ]\n}\n'
    )


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "new " * 100_000 + "\ud800")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_crash_before_the_rename_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_bytes_are_on_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    replace, fsync = Path.replace, os.fsync

    def sync(handle: int) -> None:
        order.append("fsync")
        fsync(handle)

    def rename(source: Path, target: Path) -> Path:
        order.append("rename")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    write_text_atomically(tmp_path / "a.txt", "text")
    assert order == ["fsync", "rename", "fsync"] or (os.name == "nt" and order[:2] == order)


def test_syncing_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x00\xff")
    sync_file(path)
    sync_directory(tmp_path)
    assert path.read_bytes() == b"\x00\xff"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_the_hash_is_that_of_all_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.bin"
    content = bytes(range(256)) * (size // 256 + 1)
    path.write_bytes(content[:size])
    assert sha256_file(path) == hashlib.sha256(content[:size]).hexdigest()


def test_the_variable_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "not there"))
    assert cache_directory() == tmp_path / "not there"
    assert not cache_directory().exists()
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", "~/llm")
    assert cache_directory() == Path.home() / "llm"
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", "")
    assert cache_directory().name == "llmtrain"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_what_is_written_has_the_rights_of_other_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text_atomically(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_fails_within_a_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's errors of reading, writing and syncing name no file by themselves."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "run.yaml"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", fail)
    for write in (lambda: write_text_atomically(path, "after"), lambda: sync_file(path)):
        with pytest.raises(OSError, match="Input/output error") as raised:
            write()
        assert raised.value.filename == str(path)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["run.yaml"]


def test_directories_that_were_created_for_what_fails_are_removed(tmp_path: Path) -> None:
    def fail(place: str, inner: str | None = None) -> None:
        fails = ExitStack()
        fails.enter_context(created(tmp_path / place))
        assert (tmp_path / place).is_dir()
        if inner is not None:
            (tmp_path / inner).write_text("")
        fails.callback((tmp_path / "missing").read_text)
        with pytest.raises(FileNotFoundError):
            fails.close()

    (tmp_path / "there").mkdir()
    for place in ("new/inner", "there"):
        fail(place)
        assert [path.name for path in tmp_path.iterdir()] == ["there"]
    fail("new/inner", "new/text")
    assert (tmp_path / "new" / "text").exists()
