"""Lossless tokenization: learning a vocabulary, text to ids and back, and handing it on."""

from llmtrain.tokenizer.inspection import TokenizerReport, inspect_tokenizer
from llmtrain.tokenizer.piece import Piece, PieceKind
from llmtrain.tokenizer.tokenizer import Tokenizer
from llmtrain.tokenizer.training import TrainedTokenizer, train_tokenizer

__all__ = [
    "Piece",
    "PieceKind",
    "Tokenizer",
    "TokenizerReport",
    "TrainedTokenizer",
    "inspect_tokenizer",
    "train_tokenizer",
]
