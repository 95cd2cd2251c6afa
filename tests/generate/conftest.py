"""Small decoders with random weights, computed with on one thread."""

from __future__ import annotations

from tests.model.conftest import (
    documents,
    make_model,
    one_thread,
    shape,
    small_shape,
    tokenizer,
)

__all__ = ["documents", "make_model", "one_thread", "shape", "small_shape", "tokenizer"]
