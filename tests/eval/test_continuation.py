"""Text sampled after a prompt begins with the prompt exactly, wherever the prompt ends."""

import pytest
import torch

from llmtrain.eval.continuation import continue_prompt
from llmtrain.model.decoder import Decoder
from llmtrain.model.generate import Sampling
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from tests.data.fixed import TOKENIZER


@pytest.fixture(scope="module")
def model() -> Decoder:
    vocab_size = Tokenizer.load(TOKENIZER).vocab_size
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    return Decoder(shape_of(ModelSection(vocab_size=vocab_size, context=16, **sizes))).eval()


@pytest.mark.parametrize("prompt", ["", "def ", "def", "retur", "中é", "a\n    ", "▁ ▁"])
@pytest.mark.parametrize("limit", [1, 3, 20])
def test_a_seed_is_a_text_after_any_prompt(model: Decoder, prompt: str, limit: int) -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    for sampling in (Sampling(0.0), Sampling(2.0, seed=3)):
        first, second = (
            list(continue_prompt(model, tokenizer, prompt, sampling, limit)) for _ in range(2)
        )
        assert first == second
        text = prompt + "".join(first)
        assert tokenizer.decode(tokenizer.encode(text)) == text
