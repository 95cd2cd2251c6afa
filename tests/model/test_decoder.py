"""What the decoder computes, counted and compared with slower ways to say it."""

import dataclasses
import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.choice import ActivationCheckpointing, AttentionKernel
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import WeightCasts
from llmtrain.profile.load import load_profile, shipped_profiles
from llmtrain.profile.shape import ModelShape, shape_of

MakeModel = Callable[[ModelShape], Decoder]


def shipped_shape(name: str) -> ModelShape:
    return shape_of(load_profile(name, environment={}).profile.model)


def draw_tokens(shape: ModelShape, sequences: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, shape.vocab_size, (sequences, length), generator=generator)


@torch.no_grad()
def test_no_token_sees_a_later_one(shape: ModelShape, make_model: MakeModel) -> None:
    model, tokens = make_model(shape), draw_tokens(shape, 1, shape.context)
    logits = model.logits(tokens)
    for position in (1, 17, shape.context - 1):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % shape.vocab_size
        difference = (model.logits(changed) - logits)[0].abs().amax(-1)
        assert torch.equal(difference[:position], torch.zeros(position))
        assert difference[position] > 1e-3


@torch.no_grad()
def test_every_token_sees_all_earlier_ones(shape: ModelShape, make_model: MakeModel) -> None:
    model, tokens = make_model(shape), draw_tokens(shape, 1, 16)
    logits = model.logits(tokens)[0, -1]
    for position in range(15):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % shape.vocab_size
        assert (model.logits(changed)[0, -1] - logits).abs().max() > 1e-5


@torch.no_grad()
def test_the_objective_is_the_cross_entropy_of_the_logits(
    shape: ModelShape, make_model: MakeModel
) -> None:
    model, tokens = make_model(shape).double(), draw_tokens(shape, 3, 21)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits = model.logits(inputs).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), reduction="sum")
    torch.testing.assert_close(model(inputs, targets), expected, rtol=1e-12, atol=0)


def test_parameters_are_counted_exactly(shape: ModelShape) -> None:
    assert shape.parameters == sum(p.numel() for p in Decoder(shape).parameters())


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profiles_are_counted_exactly(name: str) -> None:
    shape = shipped_shape(name)
    with torch.device("meta"):
        model = Decoder(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_one_seed_gives_one_model(shape: ModelShape) -> None:
    first, again, other = Decoder(shape), Decoder(shape), Decoder(shape)
    torch.manual_seed(1)
    first.initialise(5)
    torch.manual_seed(2)
    again.initialise(5)
    other.initialise(6)
    for (name, a), b, c in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (
            "norm" in name or name.endswith(("o_proj.weight", "down_proj.weight"))
        )


def test_no_two_matrices_start_equal(shape: ModelShape) -> None:
    model = Decoder(shape)
    model.initialise(0)
    drawn = [p.detach() for p in model.parameters() if p.dim() == 2 and p.any()]
    starts = {tuple(p.flatten()[:8].tolist()) for p in drawn}
    assert len(starts) == len(drawn)
    assert all(abs(float(p.std()) / 0.02 - 1) < 0.1 for p in drawn)


@torch.no_grad()
def test_blocks_start_as_the_identity(shape: ModelShape) -> None:
    model, tokens = Decoder(shape), draw_tokens(shape, 2, 20)
    model.initialise(0)
    embedded = model.model.embed_tokens(tokens)
    assert torch.equal(model.model(tokens), model.model.norm(embedded))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("cpu-tiny", True),
        ("cpu-small", True),
        ("mps-small", True),
        ("cpu-medium", True),
        ("cpu-medium", False),
        ("gpu-medium", True),
        ("gpu-large", True),
    ],
)
def test_the_first_loss_is_that_of_guessing(name: str, tied: bool) -> None:
    shape = dataclasses.replace(shipped_shape(name), num_layers=1, tie_embeddings=tied)
    model, tokens = Decoder(shape), draw_tokens(shape, 4, 65)
    model.initialise(0)
    loss = float(model(tokens[:, :-1], tokens[:, 1:])) / (4 * 64)
    # A tied head gives the token that was just read a logit of its own of up to 8, which counts for
    # something among few pieces.
    assert loss == pytest.approx(math.log(shape.vocab_size), rel=0.04)


def counted_flops_per_token(model: Decoder, backend: SDPBackend) -> float:
    """Of the matrix products that one forward and backward on two full contexts run."""
    context = model.shape.context
    tokens = draw_tokens(model.shape, 2, context + 1)
    with sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
        model(tokens[:, :-1], tokens[:, 1:]).backward()
    return counter.get_total_flops() / (2 * context)


def test_training_flops_are_those_that_are_run(shape: ModelShape, make_model: MakeModel) -> None:
    """Exact for blocks and head; of attention the causal half is counted, and twice that is run.

    The kernel for flash attention on the CPU is unknown to the counter before torch 2.15, so with
    it the count is the matrices alone. Later ones count seven products of the whole square, where
    six are needed. Spelled out in products, attention computes all of the square of scores,
    where half of them are masked away.
    """
    model = make_model(shape)
    attention = 3 * shape.num_layers * 2 * shape.attention_width * shape.context
    flash = counted_flops_per_token(model, SDPBackend.FLASH_ATTENTION)
    matrices = shape.training_flops_per_token - attention
    assert flash in (matrices, matrices + 2 * attention * 7 / 6)
    spelled_out = counted_flops_per_token(model, SDPBackend.MATH)
    assert spelled_out == shape.training_flops_per_token + attention


def test_under_autocast_the_residual_stream_stays_wide(
    shape: ModelShape, make_model: MakeModel
) -> None:
    model, tokens = make_model(shape), draw_tokens(shape, 2, 17)
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _m, args, out: seen.append((args[0].dtype, out.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert seen == [(torch.float32, torch.float32)] * shape.num_layers
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    exact = model(tokens[:, :-1], tokens[:, 1:]).item()
    assert loss.item() == pytest.approx(exact, rel=2e-2)
    assert loss.item() != exact


def loss_and_gradients(model: Decoder, tokens: Tensor, *, bf16: bool = False) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = model(tokens[:, :-1], tokens[:, 1:])
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("checkpointing", ["off", "selective", "full"])
def test_however_it_is_computed_it_is_one_function(
    shape: ModelShape, make_model: MakeModel, checkpointing: ActivationCheckpointing
) -> None:
    model, tokens = make_model(shape).double(), draw_tokens(shape, 3, shape.context)
    expected = loss_and_gradients(model, tokens)
    model.compute_with(attention="blocks", checkpointing=checkpointing)
    for found, plain in zip(loss_and_gradients(model, tokens), expected, strict=True):
        assert (found - plain).norm() <= 1e-12 * plain.norm()


@pytest.mark.parametrize("attention", ["sdpa", "blocks"])
@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_computed_again_is_bitwise_what_it_was(
    small_shape: ModelShape, make_model: MakeModel, attention: AttentionKernel, bf16: bool
) -> None:
    """And a cast of a weight that is kept is the one that autocast makes."""
    shape = dataclasses.replace(small_shape, num_kv_heads=2)
    model, tokens = make_model(shape), draw_tokens(shape, 3, shape.context)
    model.compute_with(attention=attention)
    expected = loss_and_gradients(model, tokens, bf16=bf16)
    for checkpointing in get_args(ActivationCheckpointing):
        for casts in (None, WeightCasts(torch.bfloat16)) if bf16 else (None,):
            model.compute_with(attention=attention, checkpointing=checkpointing, casts=casts)
            found = loss_and_gradients(model, tokens, bf16=bf16)
            assert all(map(torch.equal, found, expected))


def test_the_gradients_of_a_tied_weight_become_one_dense_one(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    """That of the embedding has rows for the tokens alone, which are added to the head's."""
    model = make_model(dataclasses.replace(small_shape, tie_embeddings=True)).double()
    tokens = draw_tokens(small_shape, 3, small_shape.context).clamp_max(5)  # each of them often
    expected = loss_and_gradients(model, tokens)
    model.compute_with()
    assert model.model.embed_tokens.has_sparse_gradient
    found, again = (loss_and_gradients(model, tokens) for _ in range(2))
    assert all(map(torch.equal, found, again))
    assert all(each.layout == torch.strided for each in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_head_of_its_own_leaves_the_embeddings_gradient_dense(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    model = make_model(dataclasses.replace(small_shape, tie_embeddings=False))
    model.compute_with()
    model(
        *(draw_tokens(small_shape, 2, 9)[:, some] for some in (slice(-1), slice(1, None)))
    ).backward()
    assert all(p.grad is not None and p.grad.layout == torch.strided for p in model.parameters())


def test_gradients_of_several_micro_batches_add_up_through_kept_casts(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    model, tokens = make_model(small_shape), draw_tokens(small_shape, 4, 20)
    model.compute_with()
    separate = [loss_and_gradients(model, some, bf16=True)[1:] for some in tokens.split(1)]
    model.compute_with(casts=WeightCasts(torch.bfloat16))
    for some in tokens.split(1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(some[:, :-1], some[:, 1:]).backward()
    for parameter, *gradients in zip(model.parameters(), *separate, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, sum(gradients, torch.zeros(())))


@torch.no_grad()
def test_nobody_but_training_sees_kept_casts(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    """Whoever changed the weights, the next evaluation is of what they are."""
    model, tokens = make_model(small_shape), draw_tokens(small_shape, 2, 20)
    model.compute_with(casts=WeightCasts(torch.bfloat16))
    with torch.enable_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(tokens, tokens).item()
    for parameter in model.parameters():
        parameter.mul_(1.5)
    fresh = Decoder(small_shape)
    fresh.load_state_dict(model.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = model(tokens, tokens).item(), fresh(tokens, tokens).item()
    assert found == expected != before
