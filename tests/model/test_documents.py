"""Masked and packed is what separate documents are: logits, loss and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmtrain.choice import ActivationCheckpointing, AttentionKernel
from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.model.decoder import Decoder
from llmtrain.ops.documents import first_of_document
from llmtrain.ops.precision import WeightCasts, autocast_as
from llmtrain.profile.shape import ModelShape

MakeModel = Callable[[ModelShape], Decoder]
SEPARATOR = 3
# Two windows of 48 inputs and a target more: the first begins within a document, and is cut off.
LENGTHS = ([9, 1, 20, 12, 7], [30, 19])


def window_of(lengths: list[int], *, begins_within: bool, seed: int) -> Tensor:
    """Documents of so many tokens, each a separator and what follows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 512, (sum(lengths),), generator=generator)
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    tokens[starts[1:] if begins_within else starts] = SEPARATOR
    return tokens


@pytest.fixture
def windows() -> list[Tensor]:
    return [
        window_of(lengths, begins_within=number == 0, seed=number)
        for number, lengths in enumerate(LENGTHS)
    ]


def apart(windows: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of each document alone: its end is predicted from its last token."""
    pairs = []
    for window, lengths in zip(windows, LENGTHS, strict=True):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            stop = min(end, len(window) - 1)
            pairs.append((window[start:stop][None], window[start + 1 : stop + 1][None]))
    return pairs


def logits_of(model: Decoder, inputs: Tensor, first_bt: Tensor | None) -> Tensor:
    return F.linear(model.model(inputs, None, first_bt), model.head_weight)


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
def test_packed_equals_separate(
    kernel: AttentionKernel, shape: ModelShape, make_model: MakeModel, windows: list[Tensor]
) -> None:
    """In fp32, of every form. Positions are not begun anew: only their differences count."""
    model = make_model(shape)
    parameters = list(model.parameters())
    packed = torch.stack(windows)
    inputs, targets = packed[:, :-1], packed[:, 1:]
    expected = torch.cat([logits_of(model, x, None)[0] for x, _ in apart(windows)])
    summed = torch.stack([model(x, y) for x, y in apart(windows)]).sum()
    gradients = torch.autograd.grad(summed, parameters)

    model.compute_with(attention=kernel)
    found = logits_of(model, inputs, first_of_document(targets, SEPARATOR)).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    model.separator_id = SEPARATOR
    loss = model(inputs, targets)
    torch.testing.assert_close(loss, summed, rtol=1e-6, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()

    unmasked = logits_of(model, inputs, None).flatten(0, 1)  # so it is the mask that does it
    assert (unmasked - expected).abs().max() > 0.1


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("half", [False, True])
def test_recomputing_changes_nothing_bitwise(
    half: bool,
    checkpointing: ActivationCheckpointing,
    kernel: AttentionKernel,
    small_shape: ModelShape,
    make_model: MakeModel,
    windows: list[Tensor],
) -> None:
    model = make_model(small_shape)
    model.separator_id = SEPARATOR
    packed, parameters = torch.stack(windows), list(model.parameters())
    casts = WeightCasts(torch.bfloat16) if half else None

    def loss_and_gradients() -> list[Tensor]:
        with autocast_as("bf16" if half else "fp32", packed.device):
            loss = model(packed[:, :-1], packed[:, 1:])
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    model.compute_with(attention=kernel, casts=casts)
    expected = loss_and_gradients()
    model.compute_with(attention=kernel, casts=casts, checkpointing=checkpointing)
    assert all(map(torch.equal, loss_and_gradients(), expected))


def test_the_end_of_a_document_is_learned_from_the_document(
    small_shape: ModelShape, make_model: MakeModel
) -> None:
    """The separator is a target like any other, predicted by the last token before it."""
    model = make_model(small_shape)
    model.separator_id = SEPARATOR
    before, after = window_of([20], begins_within=False, seed=1), torch.tensor([SEPARATOR])
    whole = torch.cat([before, after])[None]
    logits = logits_of(model, before[None], None)[0]
    expected = F.cross_entropy(logits, whole[0, 1:], reduction="sum")
    torch.testing.assert_close(model(whole[:, :-1], whole[:, 1:]), expected)


def test_a_continuation_sees_all_of_its_prompt(
    small_shape: ModelShape, make_model: MakeModel, windows: list[Tensor]
) -> None:
    """Generation heeds no separators: the caller decides what the text before is."""
    model, prompt = make_model(small_shape), windows[1][None, :40]
    expected = model.logits(prompt)
    model.separator_id = SEPARATOR
    assert torch.equal(model.logits(prompt), expected)
    cached = CachedDecoder(model, torch.float32).extend(0, prompt[0].tolist())
    torch.testing.assert_close(cached, expected[0, -1])
