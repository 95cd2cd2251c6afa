from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from llmtrain.export.pending import pending


def test_a_file_has_its_name_once_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "new" / "model.gguf"
    with pending(final) as path:
        path.write_text("whole")
        assert not final.exists()
    assert final.read_text() == "whole"
    assert list(final.parent.iterdir()) == [final]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "model.gguf"
    final.write_text("old")
    fails = ExitStack()
    fails.enter_context(pending(final)).write_text("half")
    fails.callback((tmp_path / "missing").read_text)
    with pytest.raises(FileNotFoundError):
        fails.close()
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_a_directory_replaces_another_and_what_a_killed_process_left(tmp_path: Path) -> None:
    final = tmp_path / "model"
    final.mkdir()
    (final / "old").write_text("")
    (tmp_path / ".model.0123abcd.partial").mkdir()
    (tmp_path / ".model2.0123abcd.partial").mkdir()
    with pending(final) as path:
        path.mkdir()
        (path / "new").write_text("")
    assert [each.name for each in final.iterdir()] == ["new"]
    assert {each.name for each in tmp_path.iterdir()} == {"model", ".model2.0123abcd.partial"}


def test_what_fails_leaves_no_directory_that_it_created(tmp_path: Path) -> None:
    fails = ExitStack()
    fails.enter_context(pending(tmp_path / "new" / "inner" / "model.gguf")).write_text("half")
    fails.callback((tmp_path / "missing").read_text)
    with pytest.raises(FileNotFoundError):
        fails.close()
    assert list(tmp_path.iterdir()) == []
