"""Adapters: nothing else is trained, they start as nothing, and merged they compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmtrain.errors import LlmtrainError
from llmtrain.model.adapted_linear import AdaptedLinear
from llmtrain.model.decoder import Decoder
from llmtrain.model.lora import (
    adapted_decoder,
    adapter_shapes,
    merged_weights,
    reset_adapters,
    trained_weights,
)
from llmtrain.profile.lora_shape import TARGETS, LoraShape
from llmtrain.profile.shape import ModelShape
from llmtrain.train.checkpoint.adapter import Adapter, BaseModel, read_adapter, write_adapter
from llmtrain.train.checkpoint.pretrained import open_pretrained
from tests.pretrained import save_pretrained

LORA = LoraShape(4, 8.0, tuple(TARGETS))


def draw(model: Decoder) -> None:
    """Give every adapter numbers, as training would."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.empty(parameter.shape).normal_(0, 0.3, generator=generator)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_pretrained(tmp_path / "base", tie_word_embeddings=request.param)


def built(base: Path, lora: LoraShape = LORA, dtype: torch.dtype = torch.float32) -> Decoder:
    found = open_pretrained(base)
    model = adapted_decoder(found.shape, found.tensors(), lora, dtype)
    reset_adapters(model, seed=0)
    return model


def whole(shape: ModelShape, weights: dict[str, Tensor]) -> Decoder:
    model = Decoder(shape)
    model.load_state_dict(weights)
    return model


def test_new_adapters_change_nothing(base: Path) -> None:
    found, tokens = open_pretrained(base), torch.arange(24).view(2, 12)
    expected = whole(found.shape, found.read_weights()).logits(tokens)
    assert torch.equal(built(base).logits(tokens), expected)


@pytest.mark.parametrize("targets", [tuple(TARGETS), ("q_proj", "v_proj"), ("down_proj",)])
def test_merged_computes_the_same(base: Path, targets: tuple[str, ...]) -> None:
    found, tokens = open_pretrained(base), torch.arange(24).view(2, 12)
    lora = LoraShape(3, 5.0, targets)
    model = built(base, lora)
    draw(model)
    weights = merged_weights(found.read_weights(), trained_weights(model), lora)
    expected = model.logits(tokens)
    assert not torch.allclose(expected, built(base, lora).logits(tokens), atol=1e-2)
    torch.testing.assert_close(
        whole(found.shape, weights).logits(tokens), expected, atol=1e-5, rtol=1e-5
    )
    unchanged = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    for name in unchanged & weights.keys():
        assert torch.equal(weights[name], found.read_weights()[name])


def test_only_adapters_are_trained_and_counted_exactly(base: Path) -> None:
    model, found = built(base), open_pretrained(base)
    loss = model(torch.arange(12)[None], torch.arange(1, 13)[None])
    loss.backward()
    with_gradient = {n: p for n, p in model.named_parameters() if p.grad is not None}
    weights = trained_weights(model)
    assert with_gradient.keys() == weights.keys()
    assert sum(w.numel() for w in weights.values()) == LORA.parameters(found.shape)
    dims = {name: tuple(w.shape) for name, w in found.read_weights().items()}
    assert {n: tuple(w.shape) for n, w in weights.items()} == adapter_shapes(dims, LORA)


def test_frozen_matrices_are_kept_in_half_precision(base: Path) -> None:
    model = built(base, dtype=torch.bfloat16)
    kinds = {p.dtype for p in model.parameters() if p.dim() == 2 and not p.requires_grad}
    assert kinds == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trained_weights(model).values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = built(base, dtype=torch.bfloat16)(torch.arange(12)[None], torch.arange(12)[None])
        full = built(base)(torch.arange(12)[None], torch.arange(12)[None])
    torch.testing.assert_close(half, full, atol=0, rtol=1e-2)


def test_weights_that_do_not_fit_are_refused(base: Path) -> None:
    found = open_pretrained(base)
    weights = found.read_weights()
    name = "model.norm.weight"
    changes = [
        {n: w for n, w in weights.items() if n != name},
        weights | {name: torch.ones(3)},
        weights | {"other.weight": torch.ones(3)},
        weights | {name: torch.full_like(weights[name], torch.nan)},
    ]
    for changed in changes:
        with pytest.raises(LlmtrainError):
            adapted_decoder(found.shape, changed.items(), LORA, torch.float32)


def test_linear_layers_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(5, 3).normal_(generator=generator)
    layer = AdaptedLinear(weight, LoraShape(2, 3.0, ("q_proj",)))
    x = torch.empty(4, 3).normal_(generator=generator)
    expected = x @ (weight + 1.5 * layer.lora_B.weight @ layer.lora_A.weight).T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_opens_the_adapter_with_equal_logits(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    found, tokens = open_pretrained(base), torch.arange(24).view(2, 12)
    model = built(base)
    draw(model)
    adapter = Adapter(LORA, BaseModel(base, found.sha256()))
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", adapter, trained_weights(model))
    transformers.utils.logging.disable_progress_bar()
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    transformers.utils.logging.enable_progress_bar()
    with torch.no_grad():
        logits = theirs(tokens).logits
        torch.testing.assert_close(logits, model.logits(tokens), atol=1e-4, rtol=1e-4)
    read, weights = read_adapter(tmp_path / "adapter", found.shape)
    assert read == adapter
    assert all(torch.equal(weights[n], w) for n, w in trained_weights(model).items())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_gradients_equal_those_of_peft(base: Path) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    model = built(base)
    draw(model)
    transformers.utils.logging.disable_progress_bar()
    theirs = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS), task_type="CAUSAL_LM"),
    )
    transformers.utils.logging.enable_progress_bar()
    ours = dict(trained_weights(model))
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            plain = name.removeprefix("base_model.model.").replace(".default", "")
            parameter.data = ours[plain].clone()
    tokens = torch.arange(30).view(2, 15)
    labels = tokens.clone()
    labels[:, :7] = -100
    theirs(tokens, labels=labels).loss.backward()
    targets = torch.where(labels[:, 1:] == -100, -1, labels[:, 1:])
    model.has_padding = True
    (model(tokens[:, :-1], targets) / (targets >= 0).sum()).backward()
    gradients = {
        name.removeprefix("base_model.model.").replace(".default", ""): p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)
