"""The backend for tokenizer.json, by Hugging Face's `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from tokenizers import Tokenizer as HuggingFaceTokenizer

from llmtrain.errors import DataError
from llmtrain.tokenizer.byte_unicode import bytes_of, is_byte_name, spelled_bytes
from llmtrain.tokenizer.codec import Codec
from llmtrain.tokenizer.piece import UNKNOWN, Piece, PieceKind
from llmtrain.tokenizer.text_ends import Template

_MOST_PIECES = 1 << 20


class HuggingFaceCodec(Codec):
    """A tokenizer.json without its template: no special tokens are put around a text.

    A special token's name in a text is encoded as text, as with `split_special_tokens` in
    transformers.
    """

    def __init__(self, model: bytes) -> None:
        """Read the contents of a tokenizer.json. Raises DataError if they cannot be used."""
        self.model = model
        try:
            self._tokenizer = HuggingFaceTokenizer.from_buffer(model)
        except ValueError as error:
            raise DataError(f"it is not a tokenizer.json: {str(error)[:200]}") from None
        if getattr(self._tokenizer.model, "dropout", None):
            raise DataError(
                "its model drops merges by chance: a text would have other ids each time"
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        if self.vocab_size > _MOST_PIECES:
            highest = self.vocab_size - 1
            raise DataError(f"it has an id {highest}, and {_MOST_PIECES - 1} is the highest")
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = frozenset(added)
        decoder = self._tokenizer.decoder
        self._is_in_letters = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self._controls = {token: each.content for token, each in added.items() if each.special}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, [start for start, _ in encoded.offsets]

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Return the ids of each text, in order.

        If `threads` is above 1, the library chooses the number of threads.
        """
        if threads == 1:
            return [self.encode(text) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [each.ids for each in encoded]

    def template(self) -> Template:
        """Return the special tokens that the template of the file puts around a text."""
        whole = self._tokenizer.encode("a", add_special_tokens=True)
        masked = list(zip(whole.tokens, whole.special_tokens_mask, strict=True))
        before = tuple(token for token, _ in takewhile(lambda each: each[1], masked))
        rest = masked[len(before) :]
        return Template(before, tuple(token for token, is_special in rest if is_special))

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            [token for token in ids if token not in self._controls], skip_special_tokens=False
        )
        return text

    def piece(self, token: int) -> str:
        """Return the piece of an id in the model's spelling; "" for an unassigned id."""
        return self._tokenizer.id_to_token(token) or ""

    def spell(self, token: int) -> bytes:
        text = self.piece(token)
        if token in self._added:
            return b"" if token in self._controls else text.encode()
        try:
            return bytes_of(text) if self._is_in_letters else spelled_bytes(text)
        except KeyError:  # the placeholder name of an id that no text encodes to
            return b""

    def pieces(self) -> list[Piece]:
        """Return the vocabulary in order of id; each piece's score is minus its id."""
        texts = map(self.piece, range(self.vocab_size))
        return [
            Piece(text, -float(token), self._kind(token, text)) for token, text in enumerate(texts)
        ]

    def _kind(self, token: int, text: str) -> PieceKind:
        if token in self._controls or not text:
            return "unknown" if text == UNKNOWN else "control"
        if self._is_in_letters:
            return "byte" if _is_part_of_a_character(text) else "text"
        return "byte" if is_byte_name(text) else "text"


def _is_part_of_a_character(text: str) -> bool:
    """Return whether `text`, in ByteLevel characters, spells bytes that are not valid UTF-8."""
    try:
        bytes_of(text).decode()
    except KeyError:
        return False
    except UnicodeDecodeError:
        return True
    return False
