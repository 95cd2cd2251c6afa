"""The loss of pairs of answers, by its formula and by its derivative."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmtrain.data.batches.conversations import END
from llmtrain.data.batches.packing import IGNORED
from llmtrain.model.decoder import Decoder
from llmtrain.model.preferences import (
    answer_sums,
    pair_losses,
    references_of,
    token_weights,
)
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of

# Two windows: a pair of 3 and 2 tokens and one of padding; a pair of 2 and 4 tokens.
TARGETS = np.array(
    [[IGNORED, 5, END, 6, END, IGNORED], [7, END, IGNORED, 8, 9, END]], dtype=np.int64
)
REFERENCES = np.zeros(TARGETS.shape)
REFERENCES[0, 2], REFERENCES[0, 4], REFERENCES[1, 1], REFERENCES[1, 5] = -1.0, -2.0, -3.0, -4.5


def test_sums_and_weights_are_those_of_each_answer() -> None:
    flat, values = TARGETS.ravel(), np.where(TARGETS >= 0, TARGETS, 0).ravel().astype(float)
    assert answer_sums(flat, values, END).tolist() == [5.0, 6.0, 7.0, 17.0]
    assert references_of(flat, REFERENCES.ravel(), END).tolist() == [-1.0, -2.0, -3.0, -4.5]
    weights = token_weights(flat, np.array([1.0, -1.0, 2.0, -2.0]), END)
    assert weights.tolist() == [0, 1, 0, -1, 0, 0, 2, 0, 0, -2, -2, 0]


def test_the_loss_is_that_of_the_formula_and_its_weights_are_the_derivative() -> None:
    nats, references, beta = np.array([2.0, 1.0, 3.0, 9.0]), np.array([-1.5, -2.0, -4.0, -8.0]), 0.5
    logs = torch.tensor(-nats, requires_grad=True)
    ratios = logs - torch.tensor(references)
    losses = -F.logsigmoid(beta * (ratios[0::2] - ratios[1::2]))
    losses.sum().backward()
    found = pair_losses(nats, references, beta)
    assert logs.grad is not None
    np.testing.assert_allclose(found.losses, losses.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.weights, -logs.grad.numpy(), rtol=1e-12)
    assert found.margins[0] == pytest.approx(beta * ((-2 + 1.5) - (-1 + 2)))


@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_a_margin_beyond_exp_is_a_number(margin: float) -> None:
    found = pair_losses(np.array([0.0, margin]), np.zeros(2), 1.0)
    assert found.losses[0] == pytest.approx(max(0.0, -margin))
    assert np.isfinite(found.weights).all()


def test_a_model_that_has_not_moved_has_log_two() -> None:
    assert pair_losses(np.array([2.0, 3.0]), np.array([-2.0, -3.0]), 0.1).losses[0] == math.log(2)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_a_decoders_gradient_is_that_of_the_formula(beta: float) -> None:
    section = ModelSection(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, context=8
    )
    model = Decoder(shape_of(section)).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    model.has_padding, model.separator_id, model.preference_beta = True, END, beta
    model.compute_with(attention="blocks")
    tokens = torch.randint(0, 300, TARGETS.shape, generator=generator)
    targets, references = torch.from_numpy(TARGETS), torch.from_numpy(REFERENCES)

    loss = model(tokens, targets, references)
    loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    expected = torch.zeros((), dtype=torch.float64)
    for window, (chosen, rejected) in (
        (0, (slice(0, 3), slice(3, 5))),
        (1, (slice(0, 2), slice(2, 6))),
    ):
        ratios = []
        for place in (chosen, rejected):
            own = tokens[window, place][None]
            logs = F.log_softmax(model.logits(own), dim=-1)[0]
            wanted = targets[window, place]
            each = logs.gather(1, wanted.clamp_min(0)[:, None])[:, 0]
            ratios.append(each[wanted >= 0].sum() - references[window, place].sum())
        expected = expected - F.logsigmoid(beta * (ratios[0] - ratios[1]))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert got
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-7, atol=1e-10)
