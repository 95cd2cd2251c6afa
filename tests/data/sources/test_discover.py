"""Files below a directory."""

from __future__ import annotations

from pathlib import Path

from llmtrain.data.sources.discover import files_below


def test_directories_that_are_not_wanted_are_not_looked_into(tmp_path: Path) -> None:
    """An installation may have many times the files of the library beside it."""
    for name in ("b/c.py", "a.py", ".hidden/d.py", ".e", "site-packages/deep/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    wanted = [tmp_path / "a.py", tmp_path / "b" / "c.py"]
    assert files_below(tmp_path) == [*wanted, tmp_path / "site-packages" / "deep" / "f.py"]
    assert files_below(tmp_path, without=("site-packages",)) == wanted
