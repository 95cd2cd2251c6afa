"""The tokenizer: lossless encoding and decoding, loading and saving."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llmtrain.errors import DataError
from llmtrain.files import write_pieces_atomically
from llmtrain.tokenizer.chat_source import (
    TEMPLATE_FILE,
    ChatSource,
    read_chat_source,
    with_chat_source,
)
from llmtrain.tokenizer.codec import (
    CONFIG_FILE,
    JSON_FILE,
    KIND_FILE,
    MODEL_FILE,
    Codec,
    Ends,
    Kind,
)
from llmtrain.tokenizer.escape import escape, require_unicode, unescape
from llmtrain.tokenizer.huggingface import bpe_json, tokenizer_config
from llmtrain.tokenizer.huggingface_codec import HuggingFaceCodec
from llmtrain.tokenizer.piece import Piece
from llmtrain.tokenizer.sentencepiece_codec import SentencePieceCodec
from llmtrain.tokenizer.sentencepiece_json import sentencepiece_json
from llmtrain.tokenizer.structure import read_settings
from llmtrain.tokenizer.text_ends import with_ends, with_template
from llmtrain.untrusted import problem_of, read_bytes, read_json

MAX_MODEL_BYTES = 16 << 20  # a vocabulary of 256,000 pieces takes under 5 MiB
MAX_JSON_BYTES = 64 << 20  # the same vocabulary takes 35 MiB as JSON
_ALL_FILES = (MODEL_FILE, JSON_FILE, KIND_FILE, CONFIG_FILE, TEMPLATE_FILE)
_FORMAT_VERSION = 1
_ENDS_FORMAT_VERSION = 2  # of kinds with `ends`
_HINT = (
    "make one: llmtrain tokenizer train --data SPEC --vocab-size N --out DIR; a run has its own in "
    "each checkpoint: --tokenizer RUN/checkpoints/step-…"
)


class Tokenizer:
    """A vocabulary with a separator token, which begins documents, and mostly ends them too.

    No text encodes to the separator, not even its name. All Unicode text round-trips: this is
    checked when one of llmtrain's own tokenizers is loaded and when another one is imported, which
    may be accepted nevertheless (`ImportOptions.allow_lossy`).
    """

    __slots__ = ("_codec", "chat", "fingerprint", "kind", "model", "separator_id", "vocab_size")

    def __init__(self, codec: Codec, kind: Kind, chat: ChatSource | None = None) -> None:
        self._codec: Final = codec
        self.chat: Final = chat  # its own chat template
        self.kind: Final = kind
        self.model: Final = codec.model  # contents of the tokenizer's file
        self.vocab_size: Final = codec.vocab_size  # ids are 0 to `vocab_size` - 1
        self.separator_id: Final = kind.separator_id  # it begins each document
        read_as = b"" if kind.name == "own" else json.dumps(kind.document()).encode()
        # Hexadecimal SHA-256; equal fingerprints mean equal ids.
        self.fingerprint: Final = hashlib.sha256(read_as + codec.model).hexdigest()

    @classmethod
    def of_model(cls, model: bytes) -> Tokenizer:
        """Return llmtrain's tokenizer for a serialized sentencepiece model.

        Raises DataError if the model does not have llmtrain's settings.
        """
        codec = SentencePieceCodec(model)
        return cls(codec, Kind("own", codec.require_own_settings(), escaped=True))

    @classmethod
    def read_as(cls, kind: Kind, model: bytes) -> Tokenizer:
        """Return the tokenizer of a model file's contents, read as `kind`. Raises DataError."""
        if kind.name == "own":
            return cls.of_model(model)
        codec = HuggingFaceCodec(model) if kind.name == "huggingface" else SentencePieceCodec(model)
        if not 0 <= kind.separator_id < codec.vocab_size:
            raise DataError(f"its separator, {kind.separator_id}, is not in the vocabulary")
        if kind.ends is not None:
            _require_sound(kind.ends, kind.separator_id, codec.vocab_size)
        return cls(codec, kind)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Load the tokenizer saved in `directory`. Raises DataError, naming the file."""
        kind = _kind_in(directory)
        is_json = kind is not None and kind.name == "huggingface"
        path = directory / (JSON_FILE if is_json else MODEL_FILE)
        limit_bytes = MAX_JSON_BYTES if is_json else MAX_MODEL_BYTES
        try:
            model = read_bytes(path, limit_bytes, follow_links=True)
            tokenizer = cls.of_model(model) if kind is None else cls.read_as(kind, model)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist", hint=_HINT) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {problem_of(error)}", hint=_HINT) from None
        except DataError as error:
            raise DataError(f"{path} cannot be used: {error.message}", hint=_HINT) from None
        return tokenizer.with_chat(read_chat_source(directory))

    def __reduce__(self) -> tuple[Any, tuple[Kind, bytes, ChatSource | None]]:
        return _unpickled, (self.kind, self.model, self.chat)

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-text id; None if there is none. It may be the end's."""
        return self.separator_id if self.kind.ends is None else self.kind.ends.bos_id

    @property
    def eos_id(self) -> int:
        """The end-of-text id, with which each document ends."""
        return self.separator_id if self.kind.ends is None else self.kind.ends.eos_id

    @property
    def adds_bos(self) -> bool:
        """True if prompts begin with the beginning-of-text id, as documents then do."""
        return self.kind.ends is None or self.kind.ends.adds_bos

    @property
    def end_id(self) -> int | None:
        """The id that ends a document before the next one's separator; None: none is between."""
        return None if self.eos_id == self.separator_id else self.eos_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids at which a text ends."""
        more = () if self.kind.ends is None else self.kind.ends.stop_ids
        return frozenset({self.eos_id, *more})

    def prompt_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return a prompt's ids with what begins it; a prompt without any is the separator."""
        begin = (self.separator_id,) if self.adds_bos or not ids else ()
        return (*begin, *ids)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without separators. Raises DataError for a lone surrogate."""
        return self._codec.encode(self._prepared(text))

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of `text`, and for each the index in it of the first character.

        Tokens that share a character, as its bytes do, begin at the same one.
        """
        prepared = self._prepared(text)
        ids, starts = self._codec.encode_with_starts(prepared)
        if prepared == text:
            return ids, starts
        before = list[int]()  # for each character of the escaped text, its index in `text`
        for index, character in enumerate(text):
            before += [index] * len(escape(character))
        return ids, [before[start] for start in starts]

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Return the ids of each text, in order. Raises DataError for a lone surrogate."""
        return self._codec.encode_batch([self._prepared(text) for text in texts], threads)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`.

        Separators decode to "", and invalid UTF-8 to U+FFFD. Raises DataError for an id outside
        the vocabulary.
        """
        limit = self.vocab_size
        for position, token in enumerate(ids):
            if not 0 <= token < limit:
                raise DataError(
                    f"token id {token} at position {position} is not in the vocabulary: "
                    f"ids go from 0 to {limit - 1}"
                )
        text = self._codec.decode([int(token) for token in ids])
        return unescape(text) if self.kind.escaped else text

    def piece(self, token: int) -> str:
        """Return the piece of an id from 0 to `vocab_size` - 1, in the model's spelling."""
        return self._codec.piece(token)

    def spell(self, token: int) -> bytes:
        """Return the UTF-8 that an id contributes within a text; b"" for a control token.

        The text is the escaped one if `kind.escaped` is true.
        """
        return b"" if token == self.separator_id else self._codec.spell(token)

    def pieces(self) -> list[Piece]:
        """Return the vocabulary, in order of id."""
        pieces = self._codec.pieces()
        pieces[self.separator_id] = replace(pieces[self.separator_id], kind="separator")
        return pieces

    def controls(self) -> dict[str, int]:
        """Return the ids of the control tokens, with the separator, by name."""
        kinds = ("control", "separator")
        return {
            piece.text: token
            for token, piece in enumerate(self.pieces())
            if piece.kind in kinds and piece.text
        }

    def with_chat(self, chat: ChatSource | None) -> Tokenizer:
        """Return the same tokenizer with another chat template, or none."""
        return Tokenizer(self._codec, self.kind, chat)

    def save(self, directory: Path, *, model_max_length: int | None = None) -> None:
        """Write the model to `directory`, and tokenizer.json for Hugging Face if one has equal ids.

        Files are written atomically, and those of another tokenizer are removed.
        `model_max_length` is the context in tokens; Hugging Face warns about longer texts.
        """
        directory.mkdir(parents=True, exist_ok=True)
        files = self._files(model_max_length)
        for name in {*_ALL_FILES} - files.keys():
            (directory / name).unlink(missing_ok=True)
        for name, content in files.items():
            write_pieces_atomically(directory / name, [content])

    def _files(self, model_max_length: int | None) -> dict[str, bytes]:
        pieces = self.pieces()
        is_json = self.kind.name == "huggingface"
        adds_prefix = None if is_json else read_settings(self.model).adds_dummy_prefix
        config = tokenizer_config(pieces, model_max_length, adds_prefix=adds_prefix)
        if self.kind.ends is not None:
            config = with_ends(config, self.kind.ends, pieces)
        files = {CONFIG_FILE: config.encode()}
        if self.chat is not None:
            files = {
                CONFIG_FILE: with_chat_source(config, self.chat).encode(),
                TEMPLATE_FILE: self.chat.template.encode(),
            }
        if self.kind.name == "own":
            files |= {MODEL_FILE: self.model, JSON_FILE: bpe_json(pieces).encode()}
            return files
        format_version = _FORMAT_VERSION if self.kind.ends is None else _ENDS_FORMAT_VERSION
        said = {"format_version": format_version, **self.kind.document()}
        files[KIND_FILE] = (json.dumps(said, indent=2) + "\n").encode()
        files[JSON_FILE if is_json else MODEL_FILE] = self.model
        if self.kind.name == "sentencepiece":
            text, differs_at = self.json_of_model()
            if self.kind.ends is not None and self.adds_bos:
                text = with_template(text, pieces[self.separator_id].text, self.separator_id)
            files |= {JSON_FILE: text.encode()} if differs_at is None else {}
        return files

    def json_of_model(self) -> tuple[str, str | None]:
        """Return an imported sentencepiece model as tokenizer.json, and a text whose ids differ."""
        return sentencepiece_json(self.model, self.kind.escaped)

    def _prepared(self, text: str) -> str:
        if self.kind.escaped:
            return escape(text)
        require_unicode(text)
        return text


def _require_sound(ends: Ends, separator_id: int, vocab_size: int) -> None:
    """Raise DataError if an id is outside the vocabulary, or the separator neither bos nor eos."""
    outside = [token for token in ends.ids() if not 0 <= token < vocab_size]
    if outside:
        raise DataError(f"an end of its texts, {outside[0]}, is not in the vocabulary")
    if separator_id != (ends.bos_id if ends.adds_bos else ends.eos_id):
        raise DataError(f"its separator, {separator_id}, is not what begins a document")


def _unpickled(kind: Kind, model: bytes, chat: ChatSource | None) -> Tokenizer:
    return Tokenizer.read_as(kind, model).with_chat(chat)


def _kind_in(directory: Path) -> Kind | None:
    """Return the kind recorded in `directory`; None if none is. Raises DataError."""
    path = directory / KIND_FILE
    try:
        said = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {problem_of(error)}", hint=_HINT) from None
    match said:
        case {
            "format_version": 1,
            "name": "sentencepiece" | "huggingface" as name,
            "separator_id": int(separator_id),
            "escaped": bool(escaped),
        }:
            return Kind(name, separator_id, escaped)
        case {
            "format_version": 2,
            "name": "sentencepiece" | "huggingface" as name,
            "separator_id": int(separator_id),
            "escaped": bool(escaped),
            "ends": {
                "bos_id": int() | None as bos_id,
                "eos_id": int(eos_id),
                "adds_bos": bool(adds_bos),
                "stop_ids": [*stop_ids],
            },
        } if all(type(token) is int for token in stop_ids):
            return Kind(name, separator_id, escaped, Ends(bos_id, eos_id, adds_bos, (*stop_ids,)))
    raise DataError(f"{path} does not say how a tokenizer is read", hint=_HINT)
