"""Decoders of every form, small, with no weight left at a value that would hide a mistake."""

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator

import pytest
import torch

from llmtrain.model.decoder import Decoder
from llmtrain.profile.shape import ModelShape
from llmtrain.tokenizer import Tokenizer, train_tokenizer

_SMALL = ModelShape(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=80,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    context=48,
    rope_theta=10000.0,
    norm_epsilon=1e-6,
    qk_norm=True,
    tie_embeddings=True,
)
_SHAPES = {
    f"{form}-{head}-{queries}": dataclasses.replace(
        _SMALL, qk_norm=form == "qwen3", tie_embeddings=head == "tied", num_kv_heads=kv_heads
    )
    for form in ("qwen3", "llama")
    for head in ("tied", "untied")
    for queries, kv_heads in (("every-head", 4), ("grouped", 2))
} | {
    "qwen3-wide-heads": dataclasses.replace(_SMALL, head_dim=14, num_kv_heads=2),
    "llama-one-key-head": dataclasses.replace(
        _SMALL, head_dim=6, num_kv_heads=1, qk_norm=False, rope_theta=500.0
    ),
}


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """What is computed here is too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=list(_SHAPES.values()), ids=list(_SHAPES))
def shape(request: pytest.FixtureRequest) -> ModelShape:
    """A shape of each form, tied or not, with every way of sharing keys."""
    found: ModelShape = request.param
    return found


@pytest.fixture
def small_shape() -> ModelShape:
    return _SMALL


@pytest.fixture
def make_model() -> Callable[[ModelShape], Decoder]:
    """A decoder whose weights, gains and residual projections too, are all drawn."""

    def make(shape: ModelShape, seed: int = 0) -> Decoder:
        model = Decoder(shape)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                std = 1.0 if parameter.dim() == 1 else parameter.shape[1] ** -0.5
                parameter.normal_(0, std, generator=generator)
        return model

    return make


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Twenty pieces of the standard library."""
    text = "".join(inspect.getsource(module) for module in (ast, dataclasses, json, textwrap))
    return [text[start : start + 2_000] for start in range(0, 40_000, 2_000)]


@pytest.fixture(scope="session")
def tokenizer(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents, vocab_size=480).tokenizer
