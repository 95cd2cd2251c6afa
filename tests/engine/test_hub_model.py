"""Models of the Hub: what is fetched, and what is said where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from llmtrain.engine.hub_model import fetch_model, is_hub_model
from llmtrain.engine.open_model import open_model
from llmtrain.errors import LlmtrainError, UsageError
from tests.pretrained import save_pretrained


def test_weights_and_tokenizer_are_fetched_at_a_revision_and_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(save_pretrained(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    opened = open_model("hf://owner/name@v1", lambda event: None)
    assert (opened.path, opened.step, opened.record) == (tmp_path / "snapshot", None, None)
    [(name, options)] = asked
    assert (name, options["revision"]) == ("owner/name", "v1")
    patterns = options["allow_patterns"]
    assert {"config.json", "*.safetensors", "tokenizer.json"} <= set(patterns)
    assert not any(pattern.endswith((".bin", ".py", "*", ".pt")) for pattern in patterns)


@pytest.mark.parametrize("name", ["hf://", "hf://name", "hf://a/b/c", "hf://a/b@", "hf://../b@ "])
def test_another_form_is_refused(name: str) -> None:
    assert is_hub_model(name)
    with pytest.raises(UsageError, match="does not name a model"):
        fetch_model(name)


def test_what_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(LlmtrainError) as failure:
        fetch_model("hf://owner/name")
    assert failure.value.message == "hf://owner/name cannot be reached: no network"
