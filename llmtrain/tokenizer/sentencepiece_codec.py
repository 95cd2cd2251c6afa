"""The backend for sentencepiece models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from sentencepiece import SentencePieceProcessor

from llmtrain.errors import DataError
from llmtrain.tokenizer.byte_unicode import spelled_bytes
from llmtrain.tokenizer.codec import Codec
from llmtrain.tokenizer.escape import SPACE_MARK, escape, unescape
from llmtrain.tokenizer.piece import SEPARATOR, UNKNOWN, Piece, PieceKind, reserved_names
from llmtrain.tokenizer.structure import require_sound

_PART_CHARACTERS = 1 << 14
_WORD_START = re.compile(f"(?<![ {SPACE_MARK}])[ {SPACE_MARK}]")

# Text that models with other settings change: outer and repeated spaces, line ends, combining and
# compatibility characters, and characters outside the vocabulary.
_PROBE = "  a  b\t\r\n\n\x00 e\u0301 \ufb01 \uff21 \ufeff \U0010fffd ▁ <unk> "


class SentencePieceCodec(Codec):
    """A sentencepiece model, by the sentencepiece library."""

    def __init__(self, model: bytes) -> None:
        """Read a serialized model. Raises DataError if it is invalid or over the size limits."""
        require_sound(model)
        self.model = model
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            self.vocab_size = self._processor.get_piece_size()
            pieces = self.pieces()
            self.decode(list(range(self.vocab_size)))  # raises if a surface is not UTF-8
        except (RuntimeError, UnicodeDecodeError):
            raise DataError("it is not a sentencepiece model") from None
        self._is_cut = self._keeps_words_apart(pieces)

    def encode(self, text: str) -> list[int]:
        return list(chain.from_iterable(map(self._processor.encode, self._parts(text))))

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        ids, starts, at = list[int](), list[int](), 0
        for part in self._parts(text):
            found = self._processor.encode(part, return_type="offset_mapping")
            ids += found["ids"]
            starts += [at + begin for begin, _ in found["offsets"]]  # in characters
            at += len(part)
        return ids, starts

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        parts = [list(self._parts(text)) for text in texts]
        encoded = iter(self._processor.encode(list(chain(*parts)), num_threads=threads))
        return [list(chain.from_iterable(islice(encoded, len(own)))) for own in parts]

    def decode(self, ids: list[int]) -> str:
        text: str = self._processor.decode(ids)
        return text

    def piece(self, token: int) -> str:
        text: str = self._processor.id_to_piece(token)
        return text

    def spell(self, token: int) -> bytes:
        kind, text = self._kind(token), self.piece(token)
        return spelled_bytes(text) if kind in ("text", "byte") else b""

    def pieces(self) -> list[Piece]:
        return [
            Piece(self.piece(token), self._processor.get_score(token), self._kind(token))
            for token in range(self.vocab_size)
        ]

    def end_id(self) -> int | None:
        """Return the end-of-text id, else the beginning-of-text id; None if there is neither."""
        stated = (self._processor.eos_id(), self._processor.bos_id())
        return next((int(token) for token in stated if token >= 0), None)

    def require_own_settings(self) -> int:
        """Return the separator's id if the model has the settings of `llmtrain tokenizer train`.

        With these settings every escaped text round-trips, and none encodes to a control token.
        Raises DataError for a model with other settings.
        """
        pieces = self.pieces()
        controls = [piece.text for piece in pieces if piece.kind == "control"]
        if controls != [SEPARATOR, *reserved_names(len(controls) - 1)]:
            raise DataError(f"its control tokens are not {SEPARATOR} alone")
        if [piece.text for piece in pieces if piece.kind == "unknown"] != [UNKNOWN]:
            raise DataError(f"its unknown token is not {UNKNOWN}")
        if sum(piece.kind == "byte" for piece in pieces) != 256:
            raise DataError("it does not spell unknown characters in bytes")
        # Twice: a model that puts a space before each text removes only the first one on decoding.
        if unescape(self.decode(self.encode(escape(_PROBE)) * 2)) != _PROBE * 2:
            raise DataError("it does not keep text exactly")
        if not self._is_cut:
            raise DataError("it has pieces that go on into the next word")
        return next(token for token, piece in enumerate(pieces) if piece.kind == "control")

    def _kind(self, token: int) -> PieceKind:
        if self._processor.is_byte(token):
            return "byte"
        if self._processor.is_unknown(token):
            return "unknown"
        is_text = not (self._processor.is_control(token) or self._processor.is_unused(token))
        return "text" if is_text else "control"

    def _keeps_words_apart(self, pieces: Sequence[Piece]) -> bool:
        """Return whether no piece crosses into the next word and no space is put before a text."""
        crosses = any(_WORD_START.search(piece.text, 1) for piece in pieces)
        return not crosses and not self.decode(self._processor.encode("a") * 2).count(" ")

    def _parts(self, text: str) -> Iterator[str]:
        """Yield `text` in parts cut between words; their ids concatenate to those of the whole.

        If no piece crosses words, no merge crosses a cut. Parts are encoded because sentencepiece
        takes 70 bytes of memory for each character of a string and is slower on long strings.
        """
        start = 0
        while start < len(text):
            cut = _WORD_START.search(text, start + _PART_CHARACTERS) if self._is_cut else None
            end = cut.start() if cut else len(text)
            yield text[start:end]
            start = end
