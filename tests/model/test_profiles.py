"""Every profile that is shipped trains: one step of a cut model, and all of it in outline."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llmtrain.model.decoder import Decoder
from llmtrain.profile.load import load_profile, shipped_profiles
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import shape_of
from llmtrain.train.parameter_groups import build_optimizer

# What a test machine can hold; the smallest two are trained as they are.
_CUT = ["model.context=32", "model.num_layers=1", "model.vocab_size=2048"]
_CUTS = {
    "cpu-tiny": ["model.context=64"],
    "cpu-small": ["model.context=32"],
    "gpu-large": [*_CUT, "model.hidden_size=768", "model.intermediate_size=2048"],
}

# Those for fine-tuning take the shape of the model.
WITH_A_SHAPE = [name for name in shipped_profiles() if not name.startswith("finetune-")]


def cut_profile(name: str) -> Profile:
    return load_profile(name, environment={}, assignments=_CUTS.get(name, _CUT)).profile


@pytest.mark.parametrize("name", WITH_A_SHAPE)
def test_one_step_lowers_the_loss(name: str) -> None:
    profile = cut_profile(name)
    model = Decoder(shape_of(profile.model))
    model.initialise(profile.train.seed)
    optimizer = build_optimizer(model, profile.optim, tokens_per_step=8192)
    generator = torch.Generator().manual_seed(0)
    length = profile.model.context + 1
    tokens = torch.randint(0, profile.model.vocab_size, (1, length), generator=generator)
    loss = model(tokens[:, :-1], tokens[:, 1:]) / profile.model.context
    loss.backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    with torch.no_grad():
        after = float(model(tokens[:, :-1], tokens[:, 1:])) / profile.model.context
    assert math.isfinite(after)
    assert after < loss.item()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # at first nothing passes the residual projections but what they learn themselves; a matrix
    # that decays moves all the same, and a gain before them does not
    gains = ("layernorm.weight", "q_norm.weight", "k_norm.weight")
    assert set(before) - moved == {name for name in before if name.endswith(gains)}


@pytest.mark.parametrize("name", WITH_A_SHAPE)
def test_all_of_it_fits_together(name: str) -> None:
    """Objective and backward at full size, on tensors that have shapes and no values."""
    profile = load_profile(name, environment={}).profile
    shape = shape_of(profile.model)
    with FakeTensorMode():
        model = Decoder(shape)
        tokens = torch.zeros(1, shape.context, dtype=torch.long)
        assert model.logits(tokens).shape == (1, shape.context, shape.vocab_size)
        model(tokens, tokens).backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    if profile.train.tokens_per_step != "auto":
        assert profile.train.tokens_per_step % shape.context == 0
