"""Weights in int8 are refused where the compiled step, which reads them, is not used."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.engine.inference import load_trained
from llmtrain.engine.int8 import round_weights
from llmtrain.errors import UsageError
from llmtrain.model.decoder import Decoder
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.schema import DeviceSection, ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.checkpoint.format import Checkpoint
from llmtrain.train.checkpoint.writing import save_checkpoint
from tests.checkpoints import STATE
from tests.data.fixed import TOKENIZER


def ignore(event: object) -> None:
    """Nobody reads it."""


def test_a_model_that_is_not_used_in_bf16_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    section = ModelSection(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        context=16,
    )
    model = Decoder(shape_of(section))
    saved = Checkpoint(STATE, model.state_dict(), {}, model.shape, tokenizer)
    path = save_checkpoint(tmp_path, saved)
    trained = load_trained(str(path), DeviceSection(kind="cpu", precision="fp32"), ignore)
    before = trained.model.head_weight.clone()
    with pytest.raises(UsageError, match="used in fp32: asked for") as refused:
        round_weights(trained, PrepareContext(1, ignore, lambda: None))
    assert refused.value.hint == "leave out --quant"
    assert bool((trained.model.head_weight == before).all())
