"""Learning a vocabulary from documents."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from sentencepiece import SentencePieceTrainer

from llmtrain.errors import DataError, UsageError
from llmtrain.tokenizer.codec import Kind
from llmtrain.tokenizer.escape import SPACE_MARK, escape
from llmtrain.tokenizer.huggingface import unigram_json
from llmtrain.tokenizer.piece import SEPARATOR, UNKNOWN, reserved_names
from llmtrain.tokenizer.sampling import ByteSample
from llmtrain.tokenizer.sentencepiece_codec import SentencePieceCodec
from llmtrain.tokenizer.structure import MOST_PIECES, with_pieces_respelt
from llmtrain.tokenizer.tokenizer import Tokenizer

_BYTE_PIECES = 256
_FIXED_PIECES = _BYTE_PIECES + 2  # the bytes, the unknown token and the separator

# sentencepiece learns byte pairs of words and how often they occur. Counting them here is faster
# than in its reader, and takes memory for the words alone. A word: spaces, and what follows them.
_WORD = re.compile(" *[^ ]+| +")
# A tab ends a word there; for as long as it learns, its picture, of the same script, stands for it.
_TAB, _TAB_PICTURE = "\t", "\u2409"

# sentencepiece skips, without a word, every document that holds its mark for a rare character.
_RARE_MARK = "\u2585"

# Shares of the text whose characters have pieces of their own; the rest is spelt in bytes. A
# script of many characters in a small vocabulary needs the lower ones; sentencepiece allows 0.98.
_CHARACTER_COVERAGES = (0.9999, 0.999, 0.99, 0.98)

# The characters of which the names of bytes and tokens consist have pieces in a unigram model: what
# can be spelt so is never taken for the name.
_NAME_CHARACTERS = "".join(sorted({*"<0x123456789ABCDEF>", *UNKNOWN, *SEPARATOR, *"reserved_"}))

# Where sentencepiece may divide text into pieces: each digit is a piece of its own, and a run of
# spaces may be one.
_SPLITTING: dict[str, Any] = {"split_digits": True, "allow_whitespace_only_pieces": True}

MOST_RESERVED = 1024

ModelKind = Literal["bpe", "unigram"]
SAMPLE_BYTES: Mapping[ModelKind, int] = MappingProxyType({"bpe": 64 << 20, "unigram": 16 << 20})
VocabularySize = int | Callable[[int], int]


@dataclass(frozen=True, slots=True)
class VocabularySpec:
    """What is to be learnt of a text."""

    vocab_size: int  # with all that is not learnt
    kind: ModelKind = "bpe"
    reserved: int = 0  # control tokens that are kept for later

    @property
    def fixed_pieces(self) -> int:
        """Pieces that every text gives."""
        return _FIXED_PIECES + self.reserved

    @property
    def required_characters(self) -> str:
        """Characters that have pieces of their own whatever the text is."""
        # In bytes the space would be read back as the mark, not as a space.
        return SPACE_MARK + (_NAME_CHARACTERS if self.kind == "unigram" else "")

    @property
    def fewest_pieces(self) -> int:
        """What a vocabulary needs for any text at all."""
        return self.fixed_pieces + len(self.required_characters)


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    """A tokenizer and what it was learnt from."""

    tokenizer: Tokenizer
    requested_vocab_size: int  # the tokenizer has fewer where the text has no more to give
    character_coverage: float  # share of the text whose characters are pieces
    documents: int  # with text in them
    bytes_seen: int  # UTF-8 bytes of all documents, escaped
    bytes_used: int  # of which the vocabulary was learnt


@dataclass(frozen=True, slots=True)
class LearnedVocabulary:
    """What sentencepiece made of a text."""

    model_proto: bytes  # serialized
    character_coverage: float  # the highest that fits into the vocabulary


Learn = Callable[[Iterable[str], VocabularySpec], LearnedVocabulary]


def train_tokenizer(
    documents: Iterable[str],
    *,
    vocab_size: VocabularySize,
    kind: ModelKind = "bpe",
    reserved: int = 0,
    max_bytes: int | None = None,
    learn: Learn | None = None,
) -> TrainedTokenizer:
    """A vocabulary of `vocab_size` pieces, or of as many as the documents have to give.

    `vocab_size` may be a function of the documents' bytes. Learns from a sample of at most
    `max_bytes` (None: `SAMPLE_BYTES` of the kind) from all over the documents, and from the same
    documents always the same; by `learn_vocabulary`, or by `learn` elsewhere. Raises UsageError
    where `vocab_size` is too small for the text and DataError where there is no text.
    """
    sample = ByteSample(SAMPLE_BYTES[kind] if max_bytes is None else max_bytes)
    if isinstance(vocab_size, int):
        _require_room(VocabularySpec(vocab_size, kind, reserved))  # before the text is read
    for document in documents:
        sample.add(escape(document).replace(_RARE_MARK, " "))
    if not any(text.strip("\r\n\x00") for text in sample):
        raise DataError(
            f"there is no text to learn a tokenizer from: {sample.bytes_seen} bytes of documents",
            hint="name files that have text in them: --data FILE",
        )
    pieces = vocab_size if isinstance(vocab_size, int) else vocab_size(sample.bytes_seen)
    spec = VocabularySpec(pieces, kind, reserved)
    _require_room(spec)
    learned = (learn or learn_vocabulary)(sample, spec)
    return TrainedTokenizer(
        tokenizer=_tokenizer_of(learned.model_proto, kind),
        requested_vocab_size=pieces,
        character_coverage=learned.character_coverage,
        documents=sample.documents,
        bytes_seen=sample.bytes_seen,
        bytes_used=sample.bytes_used,
    )


def learn_vocabulary(texts: Iterable[str], spec: VocabularySpec) -> LearnedVocabulary:
    """Pieces for the texts, which are read once. Raises UsageError and DataError."""
    learn = _bpe_model(texts, spec) if spec.kind == "bpe" else _unigram_model(texts, spec)
    needed = spec.fewest_pieces
    for coverage in _CHARACTER_COVERAGES:
        try:
            return LearnedVocabulary(learn(coverage), coverage)
        except RuntimeError as error:
            shortage = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
            if shortage is None:
                raise DataError(f"sentencepiece cannot learn from this text: {error}") from None
            needed = int(shortage[1])
    raise _too_small(spec, needed)


def _tokenizer_of(model: bytes, kind: ModelKind) -> Tokenizer:
    """sentencepiece adds a text's scores in 32 bits, so that near ties fall by where a word stands.

    Hugging Face's reading, word by word, is therefore the one of a unigram model.
    """
    if kind == "bpe":
        return Tokenizer.of_model(model)
    pieces = SentencePieceCodec(model).pieces()
    separator_id = next(token for token, piece in enumerate(pieces) if piece.kind == "control")
    read_as = Kind("huggingface", separator_id, escaped=False)  # tokenizer.json itself escapes
    return Tokenizer.read_as(read_as, unigram_json(pieces).encode())


def _bpe_model(texts: Iterable[str], spec: VocabularySpec) -> Callable[[float], bytes]:
    """By character coverage: the model that byte pairs give."""
    times: Counter[str] = Counter()
    for text in texts:
        times.update(_WORD.findall(text.replace(_TAB, _TAB_PICTURE)))

    def learn(coverage: float) -> bytes:
        lines = (f"{word}\t{count}" for word, count in times.items())
        model = _sentencepiece_model(lines, "tsv", spec, coverage)
        return with_pieces_respelt(model, _TAB_PICTURE.encode(), _TAB.encode())

    return learn


def _unigram_model(texts: Iterable[str], spec: VocabularySpec) -> Callable[[float], bytes]:
    """By character coverage: the unigram model, whose first pieces come from whole texts."""
    kept = list(texts)
    return lambda coverage: _sentencepiece_model(iter(kept), "text", spec, coverage)


def _sentencepiece_model(
    lines: Iterator[str], form: Literal["text", "tsv"], spec: VocabularySpec, coverage: float
) -> bytes:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        input_format=form,
        model_type=spec.kind,
        vocab_size=spec.vocab_size,
        hard_vocab_limit=False,  # fewer pieces where the text has no more to give
        character_coverage=coverage,
        num_threads=1,  # the model records it, so another number would be another fingerprint
        minloglevel=3,
        # Lossless: the text is taken as it is, and what has no piece is spelt in bytes.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        byte_fallback=True,
        **_SPLITTING,
        required_chars=spec.required_characters,
        max_sentence_length=1 << 30,  # the default, 4,192 bytes, drops most documents
        unk_id=0,
        unk_piece=UNKNOWN,
        unk_surface="",
        bos_id=1,
        bos_piece=SEPARATOR,
        eos_id=-1,  # two ids may not share a piece; the separator ends documents as well
        pad_id=-1,
        control_symbols=reserved_names(spec.reserved),
    )
    return model.getvalue()


def _require_room(spec: VocabularySpec) -> None:
    if not 0 <= spec.reserved <= MOST_RESERVED:
        raise UsageError(
            f"{spec.reserved} reserved pieces; there can be 0 to {MOST_RESERVED}",
            hint="--reserve 64",
        )
    if spec.vocab_size > MOST_PIECES:
        raise UsageError(
            f"a vocabulary of {spec.vocab_size} pieces is too large; {MOST_PIECES} are the most",
            hint="--vocab-size 8192, or auto",
        )
    if spec.vocab_size < spec.fewest_pieces:
        raise _too_small(spec, spec.fewest_pieces)


def _too_small(spec: VocabularySpec, needed: int) -> UsageError:
    characters = needed - spec.fixed_pieces
    return UsageError(
        f"a vocabulary of {spec.vocab_size} pieces is too small: this text needs at least "
        f"{needed}, {spec.fixed_pieces} for bytes and special tokens and {characters} for "
        "characters",
        hint=f"--vocab-size {needed} or more; --set model.vocab_size={needed} where a run asks it",
    )
