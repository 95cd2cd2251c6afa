"""Text to ids and back, exactly."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from llmtrain.errors import DataError
from llmtrain.tokenizer.escape import SPACE_MARK, escape, unescape
from llmtrain.tokenizer.huggingface import tokenizer_config, tokenizer_json
from llmtrain.tokenizer.piece import SEPARATOR, UNKNOWN, Piece, PieceKind
from llmtrain.tokenizer.structure import require_sound
from llmtrain.untrusted import problem_of, read_bytes

MODEL_FILE = "tokenizer.model"

_MAX_MODEL_BYTES = 16 << 20  # a vocabulary of 256,000 pieces takes under 5 MiB
_HINT = "make one: llmtrain tokenizer train --data SPEC --vocab-size N --out DIR"

_PART_CHARACTERS = 1 << 14
_WORD_START = re.compile(f"(?<![ {SPACE_MARK}])[ {SPACE_MARK}]")

# What a model made with other settings changes: outer and double spaces, line ends, composition,
# compatibility forms and characters that were never seen.
_PROBE = "  a  b\t\r\n\n\x00 e\u0301 \ufb01 \uff21 \ufeff \U0010fffd ▁ <unk> "


class Tokenizer:
    """A lossless vocabulary with one separator token, which begins and ends documents.

    Every string of Unicode text is encoded, and decodes to itself. Nothing in a text becomes the
    separator, not even its name.
    """

    __slots__ = ("_fingerprint", "_model_proto", "_processor", "_separator_id")

    def __init__(self, model_proto: bytes) -> None:
        """Read a serialized sentencepiece model. Raises DataError if it is not a lossless one."""
        require_sound(model_proto)
        self._processor = SentencePieceProcessor()
        self._model_proto = model_proto
        self._fingerprint = hashlib.sha256(model_proto).hexdigest()
        try:
            self._processor.LoadFromSerializedProto(model_proto)
            self._separator_id = self._processor.piece_to_id(SEPARATOR)
            self._require_own_settings()
        except (RuntimeError, UnicodeDecodeError):
            raise DataError("it is not a sentencepiece model") from None

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """The tokenizer saved in `directory`. Raises DataError that names the file."""
        path = directory / MODEL_FILE
        try:
            return cls(read_bytes(path, _MAX_MODEL_BYTES, follow_links=True))
        except FileNotFoundError:
            raise DataError(f"{path} does not exist", hint=_HINT) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {problem_of(error)}", hint=_HINT) from None
        except DataError as error:
            raise DataError(f"{path} cannot be used: {error.message}", hint=_HINT) from None

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self._model_proto,)

    @property
    def vocab_size(self) -> int:
        """Number of pieces; ids are 0 to `vocab_size` - 1."""
        return int(self._processor.get_piece_size())

    @property
    def separator_id(self) -> int:
        """The token between documents: the beginning and the end of each."""
        return self._separator_id

    @property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 of the model: equal fingerprints give equal ids."""
        return self._fingerprint

    def encode(self, text: str) -> list[int]:
        """Ids that decode to `text`, never the separator. Raises DataError on lone surrogates."""
        parts = (self._processor.encode(part) for part in _parts(escape(text)))
        return list(chain.from_iterable(parts))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """`encode` of each text, in order."""
        parts = [list(_parts(escape(text))) for text in texts]
        encoded = iter(self._processor.encode(list(chain(*parts)), num_threads=threads))
        return [list(chain.from_iterable(islice(encoded, len(own)))) for own in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """The exact text; separators are nothing, bytes that are not UTF-8 become U+FFFD.

        Raises DataError on an id outside the vocabulary.
        """
        limit = self.vocab_size
        for position, token in enumerate(ids):
            if not 0 <= token < limit:
                raise DataError(
                    f"token id {token} at position {position} is not in the vocabulary: "
                    f"ids go from 0 to {limit - 1}"
                )
        text: str = self._processor.decode([int(token) for token in ids])
        return unescape(text)

    def piece(self, token: int) -> str:
        """How the model spells an id from 0 to `vocab_size` - 1."""
        text: str = self._processor.id_to_piece(token)
        return text

    def pieces(self) -> list[Piece]:
        """The vocabulary, in the order of ids."""
        return [
            Piece(self.piece(token), self._processor.get_score(token), self._kind(token))
            for token in range(self.vocab_size)
        ]

    def save(self, directory: Path, *, model_max_length: int | None = None) -> None:
        """`directory` holds the model and what Hugging Face reads for the same ids.

        `model_max_length` is the context, in tokens, that Hugging Face warns beyond.
        """
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MODEL_FILE).write_bytes(self._model_proto)
        files = {
            "tokenizer.json": tokenizer_json(self.pieces()),
            "tokenizer_config.json": tokenizer_config(model_max_length),
        }
        for name, text in files.items():
            (directory / name).write_bytes(text.encode())

    def _kind(self, token: int) -> PieceKind:
        if self._processor.is_byte(token):
            return "byte"
        if self._processor.is_unknown(token):
            return "unknown"
        return "separator" if token == self._separator_id else "text"

    def _require_own_settings(self) -> None:
        """Every text round-trips, none becomes a control token, and no piece crosses words."""
        pieces = self.pieces()
        self.decode(range(self.vocab_size))  # what stands for the unknown may be no text
        controls = [i for i in range(self.vocab_size) if self._processor.is_control(i)]
        if controls != [self._separator_id]:
            raise DataError(f"its control tokens are not {SEPARATOR} alone")
        if [piece.text for piece in pieces if piece.kind == "unknown"] != [UNKNOWN]:
            raise DataError(f"its unknown token is not {UNKNOWN}")
        if sum(piece.kind == "byte" for piece in pieces) != 256:
            raise DataError("it does not spell unknown characters in bytes")
        # Twice, for a model that puts a space before each text takes only the first away again.
        if self.decode(self.encode(_PROBE) * 2) != _PROBE * 2:
            raise DataError("it does not keep text exactly")
        if any(_WORD_START.search(piece.text, 1) for piece in pieces):
            raise DataError("it has pieces that go on into the next word")


def _parts(escaped: str) -> Iterator[str]:
    """`escaped` cut between words, so that the parts have the ids of the whole.

    No piece goes on into the next word, so no merge crosses a cut. sentencepiece takes 70 bytes of
    memory for each character of a string, and is slower on long ones.
    """
    start = 0
    while start < len(escaped):
        cut = _WORD_START.search(escaped, start + _PART_CHARACTERS)
        end = cut.start() if cut else len(escaped)
        yield escaped[start:end]
        start = end
