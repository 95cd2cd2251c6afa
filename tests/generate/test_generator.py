"""Several texts together are the texts that each request gives alone."""

import pytest
import torch

from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.sampling import Sampling
from llmtrain.generate.text import TextRequest
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from tests.data.fixed import TOKENIZER


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Decoder:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(0)
    section = ModelSection(vocab_size=tokenizer.vocab_size, context=24, **sizes)
    return Decoder(shape_of(section)).eval()


def text_of(generator: TextGenerator, request: TextRequest) -> str:
    return "".join(piece.text for piece in generator.generate(request))


@pytest.mark.parametrize("slots", [1, 3, 20])
def test_texts_together_are_those_alone(model: Decoder, tokenizer: Tokenizer, slots: int) -> None:
    requests = [
        TextRequest(prompt, Sampling(2.0, seed=seed), 4 + 5 * seed, stop=("e",) * (seed % 2))
        for seed in range(4)
        for prompt in ("", "def ", "import os, " * 10)
    ]
    generator = TextGenerator(model, tokenizer, "fp32", slots)
    texts = [""] * len(requests)
    streams = [generator.prepare(request) for request in requests]
    for index, piece, stream in generator.generate_all(streams):
        assert stream.request is requests[index]
        texts[index] += piece.text
    alone = TextGenerator(model, tokenizer, "fp32")
    assert texts == [text_of(alone, request) for request in requests]
    assert (generator.free, generator.running) == (slots, 0)


def test_a_text_that_nobody_reads_on_frees_its_slot(model: Decoder, tokenizer: Tokenizer) -> None:
    generator = TextGenerator(model, tokenizer, "fp32")
    pieces = generator.generate(TextRequest("a", Sampling(), 50))
    next(pieces)
    assert generator.free == 0
    pieces.close()
    assert generator.free == 1


def test_a_cancelled_text_gets_no_more(model: Decoder, tokenizer: Tokenizer) -> None:
    generator = TextGenerator(model, tokenizer, "fp32", slots=2)
    first, second = (generator.prepare(TextRequest("a", Sampling(), 50)) for _ in range(2))
    generator.start(first)
    generator.start(second)
    assert {id(stream) for stream, _ in generator.step()} == {id(first), id(second)}
    generator.cancel(first)
    assert {id(stream) for stream, _ in generator.step()} == {id(second)}
