"""A block by native kernels: torch's function and gradients, repeatable, for every shape."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import WeightCasts, autocast_as
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of

pytestmark = pytest.mark.usefixtures("native_kernels")

LARGEST_ERROR = 1e-2
OF_TORCH = 1.2  # times the error of torch's kernels in bf16
SECTIONS = [
    ModelSection(
        vocab_size=320,
        hidden_size=192,
        intermediate_size=544,
        num_layers=2,
        num_heads=3,
        context=130,
    ),
    ModelSection(  # grouped keys; heads of another width than the model; no norms of heads
        vocab_size=320,
        hidden_size=96,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        qk_norm=False,
        context=33,
    ),
    ModelSection(
        vocab_size=320,
        hidden_size=544,
        intermediate_size=1056,
        num_layers=1,
        num_heads=2,
        head_dim=80,
        context=300,
    ),
]
SEQUENCES = 3


def made(section: ModelSection, dtype: torch.dtype = torch.float32) -> Decoder:
    """Return a model all of whose weights matter: none starts at zero, and gains differ."""
    model = Decoder(shape_of(section))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_matrix = parameter.dim() == 2
            parameter.copy_(drawn / parameter.shape[-1] ** 0.5 if is_matrix else 1 + 0.3 * drawn)
    return model.to(dtype)


def text(section: ModelSection) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = SEQUENCES, section.context + 1
    drawn = torch.randint(24, size, generator=generator)  # each of them often
    return drawn[:, :-1], drawn[:, 1:]


def gradients(model: Decoder, section: ModelSection, precision: str) -> Mapping[str, Tensor]:
    """Return the gradient of every weight, and the loss."""
    tokens, targets = text(section)
    model.zero_grad()
    with autocast_as("bf16" if precision == "bf16" else "fp32", torch.device("cpu")):
        loss = model(tokens, targets) / targets.numel()
    torch.autograd.backward(loss)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss.detach()}


def native(section: ModelSection, **how: object) -> Decoder:
    model = made(section)
    model.compute_with(attention="native", block_kernels="native", **how)  # type: ignore[arg-type]
    return model


def error(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], name: str) -> float:
    difference = found[name].double() - exact[name].double()
    return float(difference.norm() / exact[name].double().norm())


@pytest.mark.parametrize("section", SECTIONS)
def test_gradients_are_as_accurate_as_those_of_torchs_kernels(section: ModelSection) -> None:
    exact = gradients(made(section, torch.float64), section, "fp64")
    by_torch = gradients(made(section), section, "bf16")
    found = gradients(native(section), section, "bf16")
    assert found.keys() == exact.keys()
    for name in exact:
        assert error(found, exact, name) <= OF_TORCH * max(
            LARGEST_ERROR, error(by_torch, exact, name)
        ), name


@pytest.mark.parametrize("section", SECTIONS[:1])
def test_documents_do_not_see_each_other(section: ModelSection) -> None:
    exact, by_torch, found = made(section, torch.float64), made(section), native(section)
    for model in (exact, by_torch, found):
        model.separator_id = 7  # some of the random tokens
    wanted = gradients(exact, section, "fp64")
    torchs = gradients(by_torch, section, "bf16")
    got = gradients(found, section, "bf16")
    plain = gradients(native(section), section, "bf16")
    for name in wanted:
        largest = max(LARGEST_ERROR, error(torchs, wanted, name))
        assert error(got, wanted, name) <= OF_TORCH * largest, name
    assert error(plain, wanted, "model.layers.0.self_attn.q_proj.weight") > 0.05


@pytest.mark.parametrize("section", SECTIONS)
def test_a_step_is_bitwise_repeatable_however_it_is_kept(section: ModelSection) -> None:
    first = gradients(native(section), section, "bf16")
    others = [
        native(section),
        native(section, casts=WeightCasts(torch.bfloat16)),
        native(section, checkpointing="selective"),
        native(section, checkpointing="full"),
    ]
    for model in others:
        again = gradients(model, section, "bf16")
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_copies_of_weights_are_renewed_after_an_update() -> None:
    section = SECTIONS[0]
    casts = WeightCasts(torch.bfloat16)
    model = native(section, casts=casts)
    gradients(model, section, "bf16")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    casts.forget()
    fresh = native(section)
    fresh.load_state_dict(model.state_dict())
    found, wanted = (gradients(each, section, "bf16") for each in (model, fresh))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_evaluation_computes_the_training_loss() -> None:
    section = SECTIONS[0]
    casts = WeightCasts(torch.bfloat16)
    model = native(section, casts=casts)
    trained = gradients(model, section, "bf16")["loss"]
    with torch.no_grad(), autocast_as("bf16", torch.device("cpu")):
        tokens, targets = text(section)
        evaluated = model(tokens, targets) / targets.numel()
    torch.testing.assert_close(evaluated, trained, rtol=1e-5, atol=0)


def test_other_precisions_compute_by_torchs_kernels() -> None:
    section = SECTIONS[0]
    model = native(section)
    model.compute_with(block_kernels="native")
    by_torch = made(section)
    by_torch.compute_with()
    found, wanted = (gradients(each, section, "fp32") for each in (model, by_torch))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_only_how_the_work_is_divided(threads: int) -> None:
    section = SECTIONS[0]
    wanted = gradients(native(section), section, "bf16")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, *again = (gradients(native(section), section, "bf16") for _ in range(4))
    finally:
        torch.set_num_threads(before)
    for name in wanted:
        assert error(found, wanted, name) < LARGEST_ERROR, name
        # whoever takes which task: with more threads than cores that differs from time to time
        assert all(torch.equal(found[name], other[name]) for other in again), name
