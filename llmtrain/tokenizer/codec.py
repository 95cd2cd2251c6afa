"""The interface of a tokenizer backend, and the names and kinds of tokenizer files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from llmtrain.tokenizer.piece import Piece

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"  # for Hugging Face; not needed to load a tokenizer
KIND_FILE = "tokenizer_kind.json"  # absent for llmtrain's own models, which need none

# A directory with one of these files contains a tokenizer saved by llmtrain.
NAMING_FILES = (KIND_FILE, MODEL_FILE)

# own: a sentencepiece model with the settings of `llmtrain tokenizer train`; the other kinds are
# named after the library that reads the file.
KindName = Literal["own", "sentencepiece", "huggingface"]


@dataclass(frozen=True, slots=True)
class Ends:
    """How texts begin and end by a tokenizer for which one separator does not do both.

    Documents begin with bos where the tokenizer adds it to a text, and end with eos.
    """

    bos_id: int | None
    eos_id: int
    adds_bos: bool  # to the beginning of a prompt
    stop_ids: tuple[int, ...] = ()  # other ids at which generation stops

    def ids(self) -> tuple[int, ...]:
        """Return all ids."""
        return (*([] if self.bos_id is None else [self.bos_id]), self.eos_id, *self.stop_ids)


@dataclass(frozen=True, slots=True)
class Kind:
    """The interpretation of a tokenizer file; ids depend on it as well as on the file."""

    name: KindName
    separator_id: int  # begins each document; bos where `ends` adds it, else eos
    escaped: bool  # whether `escape` is applied before encoding
    ends: Ends | None = None  # None: the separator ends documents and begins prompts

    def document(self) -> dict[str, object]:
        """Return the kind as JSON; what is as in tokenizers without `ends` is the same there."""
        values = asdict(self)
        return values if self.ends is not None else {k: v for k, v in values.items() if k != "ends"}


class Codec(Protocol):
    """The encoder and decoder of one library; text never encodes to a control token."""

    model: bytes  # contents of the model file
    vocab_size: int  # ids are 0 to `vocab_size` - 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of Unicode text."""

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of Unicode text, and for each the index of its first character.

        Tokens that share a character, as its bytes do, begin at the same one.
        """

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Return the ids of each text, in order."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids below `vocab_size`; control tokens decode to ""."""

    def piece(self, token: int) -> str:
        """Return the piece of an id below `vocab_size`, in the model's spelling."""

    def spell(self, token: int) -> bytes:
        """Return the UTF-8 that an id contributes within a text; b"" for a control token."""

    def pieces(self) -> list[Piece]:
        """Return the vocabulary in order of id; the separator is among the control tokens."""
