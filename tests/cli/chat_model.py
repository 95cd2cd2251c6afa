"""A small model with a chat template, and no training: what it says means nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.chat_template import CHAT_PIECES, default_source
from llmtrain.tokenizer.of_model import with_reserved_pieces
from llmtrain.train.checkpoint.format import Checkpoint
from llmtrain.train.checkpoint.writing import save_checkpoint
from tests.checkpoints import STATE
from tests.data.fixed import TOKENIZER

CONTEXT = 96


def save_chat_model(directory: Path) -> Path:
    """Return a checkpoint directory."""
    tokenizer = with_reserved_pieces(Tokenizer.load(TOKENIZER), CHAT_PIECES)
    tokenizer = tokenizer.with_chat(default_source(tokenizer))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2}
    section = ModelSection(vocab_size=tokenizer.vocab_size, context=CONTEXT, **sizes)
    torch.manual_seed(0)
    model = Decoder(shape_of(section))
    checkpoint = Checkpoint(STATE, model.state_dict(), {}, model.shape, tokenizer)
    return save_checkpoint(directory, checkpoint)
