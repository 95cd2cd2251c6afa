"""Adapters on the disk: only what was written is read, beside the model that it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmtrain.errors import LlmtrainError
from llmtrain.model.lora import adapter_shapes
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.train.checkpoint.adapter import (
    ADAPTER_CONFIG,
    BASE,
    Adapter,
    BaseModel,
    read_adapter,
    with_distinct_rows,
    write_adapter,
)
from llmtrain.train.checkpoint.pretrained import open_pretrained
from tests.pretrained import save_pretrained

LORA = LoraShape(2, 8.0, ("q_proj", "down_proj"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with adapters, beside its model."""
    found = open_pretrained(save_pretrained(tmp_path / "base"))
    shapes = {name: tuple(w.shape) for name, w in found.read_weights().items()}
    weights = {name: torch.ones(dims) for name, dims in adapter_shapes(shapes, LORA).items()}
    (tmp_path / "adapter").mkdir()
    adapter = Adapter(LORA, BaseModel(tmp_path / "base", found.sha256()))
    write_adapter(tmp_path / "adapter", adapter, weights)
    return tmp_path / "adapter"


def test_the_model_has_to_be_what_it_was(saved: Path) -> None:
    base = saved.parent / "base"
    shape = open_pretrained(base).shape
    adapter, weights = read_adapter(saved, shape)
    merged = adapter.merged(weights, shape)
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(merged[name], open_pretrained(base).read_weights()[name] + 8.0)
    save_pretrained(base, rms_norm_eps=1e-3)
    with pytest.raises(LlmtrainError, match=r"config\.json has changed"):
        adapter.merged(weights, shape)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        (ADAPTER_CONFIG, {"r": 3}),
        (ADAPTER_CONFIG, {"r": 0}),
        (ADAPTER_CONFIG, {"target_modules": ["q_proj"]}),
        (ADAPTER_CONFIG, {"target_modules": ["lm_head"]}),
        (ADAPTER_CONFIG, {"target_modules": None}),
        (BASE, {"path": 7}),
        (BASE, {"other": 7}),
    ],
)
def test_what_does_not_fit_is_refused(saved: Path, file: str, changes: dict[str, object]) -> None:
    shape = open_pretrained(saved.parent / "base").shape
    values = json.loads((saved / file).read_text()) | changes
    (saved / file).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r".+"):
        read_adapter(saved, shape)


def test_added_rows_differ_and_are_the_same_every_time() -> None:
    matrix = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    extended = with_distinct_rows(matrix, 53)
    assert torch.equal(extended[:50], matrix)
    assert torch.equal(extended, with_distinct_rows(matrix, 53))
    distances = torch.cdist(extended[50:], extended[50:]) + 10 * torch.eye(3)
    assert distances.min() > 0.5
    assert with_distinct_rows(matrix, 50) is matrix
