from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.machine.core_wait import read_core_times, waited_share


def write(root: Path, thread: str, text: str) -> None:
    path = root / "proc" / "self" / "task" / thread / "schedstat"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_share_is_of_what_was_added_since(tmp_path: Path) -> None:
    write(tmp_path, "1", "1000 500 7\n")
    before = read_core_times(tmp_path)
    write(tmp_path, "1", "1600 600 9\n")
    write(tmp_path, "2", "200 100 1\n")  # started meanwhile
    write(tmp_path, "3", "unreadable")
    assert waited_share(before, read_core_times(tmp_path)) == pytest.approx(200 / 1000)


def test_it_is_unknown_where_nothing_is_counted(tmp_path: Path) -> None:
    assert waited_share(read_core_times(tmp_path), read_core_times(tmp_path)) is None
