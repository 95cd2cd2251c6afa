"""What a library that turns text into ids has to offer, and how its files are to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llmtrain.tokenizer.piece import Piece

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"  # for Hugging Face; nothing of it is read here
KIND_FILE = "tokenizer_kind.json"  # not there for an own model, which says all by itself

# A directory with one of these has a tokenizer that was saved by this package.
NAMING_FILES = (KIND_FILE, MODEL_FILE)

# own: a sentencepiece model as `llmtrain tokenizer train` makes them; the others are named after
# the library that reads their file.
KindName = Literal["own", "sentencepiece", "huggingface"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How the file of a tokenizer is read. The same file read another way gives other ids."""

    name: KindName
    separator_id: int
    escaped: bool  # text is `escape`d before it is encoded


class Codec(Protocol):
    """Ids of text as one library has them; control tokens never come of text."""

    @property
    def model(self) -> bytes:
        """The file that it was read from."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of Unicode text."""
        ...

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """`encode` of each, in order."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of ids below `vocab_size`; control tokens are nothing."""
        ...

    def piece(self, token: int) -> str:
        """How the model spells an id below `vocab_size`."""
        ...

    def spell(self, token: int) -> bytes:
        """Return the UTF-8 that an id stands for inside a text; b"" for a control token."""
        ...

    def pieces(self) -> list[Piece]:
        """The vocabulary in the order of ids; the separator is one of the control tokens."""
        ...
