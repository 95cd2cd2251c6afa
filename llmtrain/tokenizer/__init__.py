"""Lossless tokenization: train, import, inspect and save tokenizers; encode and decode text."""

from llmtrain.tokenizer.importing import ImportOptions, import_tokenizer, open_tokenizer
from llmtrain.tokenizer.inspection import TokenizerReport, inspect_tokenizer
from llmtrain.tokenizer.piece import Piece, PieceKind
from llmtrain.tokenizer.tokenizer import Tokenizer
from llmtrain.tokenizer.training import TrainedTokenizer, train_tokenizer

__all__ = [
    "ImportOptions",
    "Piece",
    "PieceKind",
    "Tokenizer",
    "TokenizerReport",
    "TrainedTokenizer",
    "import_tokenizer",
    "inspect_tokenizer",
    "open_tokenizer",
    "train_tokenizer",
]
