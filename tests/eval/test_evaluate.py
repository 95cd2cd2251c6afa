"""Losses summed over text, their units, and the baselines."""

import dataclasses
import inspect
import math
import random
import textwrap
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from llmtrain.data.batches.windows import sequential_windows
from llmtrain.eval import baselines
from llmtrain.eval.baselines import Baselines, measure_baselines
from llmtrain.eval.evaluate import LossSum, bits_per_byte, sum_loss
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from tests.tokens import Ids

SECTION = ModelSection(
    vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, context=16
)


@pytest.fixture
def model() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(shape_of(SECTION)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def loss_of(model: Decoder, ids: NDArray[np.int64], micro_batch: int = 4) -> LossSum:
    return sum_loss(
        model,
        sequential_windows(Ids(ids), SECTION.context),
        micro_batch=micro_batch,
        autocast=nullcontext,
        check_stop=lambda: None,
    )


@pytest.mark.parametrize(
    ("nats", "tokens", "text_bytes", "expected"),
    [
        (math.log(2), 8, 8, 1.0),
        (math.log(256), 100, 100, 8.0),
        (math.log(2) * 3, 10, 40, 0.75),
        (0.0, 10, 40, 0.0),
    ],
)
def test_bits_per_byte(nats: float, tokens: int, text_bytes: int, expected: float) -> None:
    assert bits_per_byte(nats, tokens, text_bytes) == pytest.approx(expected, rel=1e-15)


def test_a_longer_vocabulary_changes_no_bits_per_byte() -> None:
    """The same text, the same probability of it as a whole: twice the tokens at half the loss."""
    assert bits_per_byte(3.0, 50, 200) == bits_per_byte(1.5, 100, 200)


def test_perplexity_is_the_number_of_equal_choices() -> None:
    assert LossSum(10 * math.log(50), 10).perplexity == pytest.approx(50)
    assert LossSum(1e6, 10).perplexity == math.inf
    assert LossSum(0.0, 10).perplexity == 1.0


@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 100, 137])
@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_every_token_but_the_first_is_predicted_once(
    model: Decoder, length: int, micro_batch: int
) -> None:
    ids = np.random.default_rng(length).integers(0, 300, length)
    found = loss_of(model, ids, micro_batch)
    tokens, expected = torch.from_numpy(ids), 0.0
    with torch.no_grad():
        for position in range(1, length):
            start = (position - 1) // 16 * 16  # of the window that the token is predicted in
            logits = model.logits(tokens[None, start:position])[0, -1]
            expected += F.cross_entropy(logits, tokens[position]).item()
    assert found.tokens == length - 1
    assert found.nats == pytest.approx(expected, rel=1e-12)


def test_evaluation_leaves_no_trace(model: Decoder) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    loss_of(model, np.arange(50))
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_a_stop_is_heard_between_batches(model: Decoder) -> None:
    asked: list[int] = []

    class StopError(Exception):
        pass

    def check_stop() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise StopError

    windows = sequential_windows(Ids(np.arange(300)), SECTION.context)
    with pytest.raises(StopError):
        sum_loss(model, windows, micro_batch=1, autocast=nullcontext, check_stop=check_stop)
    assert len(asked) == 3


def baselines_of(text: str, unigram_nats: float | None, pieces: int = 256) -> Baselines:
    """With a token a byte."""
    size = max(1, len(text.encode()))
    return measure_baselines(
        [text], pieces=pieces, tokens=size, text_bytes=size, unigram_nats_per_token=unigram_nats
    )


def unigram_nats(text: str) -> float:
    counts = np.bincount(np.frombuffer(text.encode(), dtype=np.uint8))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def test_better_baselines_need_fewer_bits() -> None:
    text = inspect.getsource(textwrap) + inspect.getsource(dataclasses)
    found = baselines_of(text, unigram_nats(text))
    assert found.uniform_bpb == pytest.approx(8.0)
    assert found.unigram_bpb is not None
    assert found.uniform_bpb > found.unigram_bpb > found.gzip_bpb > found.xz_bpb > 0
    assert found.gzip_bpb > found.bzip2_bpb > 0


def test_noise_cannot_be_compressed() -> None:
    noise = "".join(chr(c) for c in random.Random(0).choices(range(128), k=20_000))
    found = baselines_of(noise, unigram_nats(noise), pieces=128)
    assert found.uniform_bpb == pytest.approx(7.0)
    assert found.unigram_bpb == pytest.approx(7.0, abs=0.01)
    assert 6.9 < found.gzip_bpb < 7.5


@pytest.mark.parametrize("text", ["", "a", "\n", "é"])
def test_a_text_of_almost_nothing_has_baselines(text: str) -> None:
    found = dataclasses.asdict(baselines_of(text, unigram_nats=None))
    assert found.pop("unigram_bpb") is None
    assert all(0 < value < math.inf for value in found.values())


def test_compressors_see_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_LARGEST_SAMPLE_BYTES", 10_001)  # within a character
    taken: list[int] = []

    def texts() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield "é" * 1_000

    measure_baselines(
        texts(),
        pieces=2,
        tokens=1,
        text_bytes=1,
        unigram_nats_per_token=None,
    )
    assert taken == list(range(6))


def test_compressors_see_nothing_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_LARGEST_SAMPLE_BYTES", 2_000)
    text = inspect.getsource(textwrap)
    found = [baselines_of(text[:2_000] + rest, None) for rest in (text[2_000:], "x" * 50_000)]
    for name in ("gzip_bpb", "bzip2_bpb", "xz_bpb"):
        first, second = (dataclasses.asdict(each)[name] for each in found)
        assert first == second
