"""What can be said of the cache before anything is made for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.data.shards.cache_entry import require_usable_cache
from llmtrain.errors import LlmtrainError


def test_a_cache_that_can_be_written_is_made_and_stays_empty(tmp_path: Path) -> None:
    require_usable_cache(tmp_path / "home" / "cache")
    assert list((tmp_path / "home" / "cache").iterdir()) == []


def test_one_that_cannot_is_named_with_the_variable(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, where a directory would have to be")
    with pytest.raises(
        LlmtrainError, match=r"the cache .*home.cache cannot be written: "
    ) as raised:
        require_usable_cache(tmp_path / "home" / "cache")
    assert "LLMTRAIN_CACHE_DIR" in (raised.value.hint or "")


def test_one_that_is_only_read_may_hold_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**where: Path) -> None:
        raise OSError(30, "Read-only file system", str(where))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(LlmtrainError, match="Read-only file system"):
        require_usable_cache(tmp_path)
    (tmp_path / "shards" / "0123").mkdir(parents=True)
    require_usable_cache(tmp_path)
