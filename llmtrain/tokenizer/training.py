"""Learning a vocabulary from documents."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sentencepiece import SentencePieceTrainer

from llmtrain.errors import DataError, UsageError
from llmtrain.tokenizer.escape import SPACE_MARK, escape
from llmtrain.tokenizer.piece import SEPARATOR, UNKNOWN
from llmtrain.tokenizer.sampling import ByteSample
from llmtrain.tokenizer.tokenizer import Tokenizer

_FIXED_PIECES = 256 + 2  # the bytes, the unknown token and the separator
MINIMUM_VOCAB_SIZE = _FIXED_PIECES + 1  # the space always has a piece

# sentencepiece skips, without a word, every document that holds its mark for a rare character.
_RARE_MARK = "\u2585"

# Shares of the text whose characters have pieces of their own; the rest is spelt in bytes. A
# script of many characters in a small vocabulary needs the lower ones; sentencepiece allows 0.98.
_CHARACTER_COVERAGES = (0.9999, 0.999, 0.99, 0.98)


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
class Learned:
    """What sentencepiece made of a text."""

    model_proto: bytes  # serialized
    character_coverage: float  # the highest that fits into the vocabulary


Learn = Callable[[Sequence[str], int], Learned]


def train_tokenizer(
    documents: Iterable[str],
    *,
    vocab_size: int,
    max_bytes: int = 64 << 20,
    learn: Learn | None = None,
) -> TrainedTokenizer:
    """A vocabulary of `vocab_size` pieces, or of as many as the documents have to give.

    Learns from a sample of at most `max_bytes` from all over the documents, and from the same
    documents always the same; by `learn_vocabulary`, or by `learn` elsewhere. Raises UsageError
    where `vocab_size` is too small for the text and DataError where there is no text.
    """
    if vocab_size < MINIMUM_VOCAB_SIZE:
        raise _too_small(vocab_size, MINIMUM_VOCAB_SIZE)
    sample = ByteSample(max_bytes)
    for document in documents:
        sample.add(escape(document).replace(_RARE_MARK, " "))
    texts = sample.texts()
    if not any(text.strip("\r\n\x00") for text in texts):
        raise DataError(
            f"there is no text to learn a tokenizer from: {sample.bytes_seen} bytes of documents",
            hint="name files that have text in them: --data FILE",
        )
    learned = (learn or learn_vocabulary)(texts, vocab_size)
    return TrainedTokenizer(
        tokenizer=Tokenizer(learned.model_proto),
        requested_vocab_size=vocab_size,
        character_coverage=learned.character_coverage,
        documents=sample.documents,
        bytes_seen=sample.bytes_seen,
        bytes_used=sample.bytes_used,
    )


def learn_vocabulary(texts: Sequence[str], vocab_size: int) -> Learned:
    """Pieces for the texts. Raises UsageError and DataError."""
    needed = MINIMUM_VOCAB_SIZE
    for coverage in _CHARACTER_COVERAGES:
        try:
            return Learned(_sentencepiece_model(texts, vocab_size, coverage), coverage)
        except RuntimeError as error:
            shortage = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
            if shortage is None:
                raise DataError(f"sentencepiece cannot learn from this text: {error}") from None
            needed = int(shortage[1])
    raise _too_small(vocab_size, needed)


def _sentencepiece_model(texts: Sequence[str], vocab_size: int, coverage: float) -> bytes:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,  # fewer pieces where the text has no more to give
        character_coverage=coverage,
        num_threads=1,  # the model records it, so another number would be another fingerprint
        minloglevel=3,
        # Lossless: the text is taken as it is, and what has no piece is spelt in bytes.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        split_digits=True,
        required_chars=SPACE_MARK,  # in bytes it would be read back as the mark, not as a space
        max_sentence_length=1 << 30,  # the default, 4,192 bytes, drops most documents
        unk_id=0,
        unk_piece=UNKNOWN,
        unk_surface="",
        bos_id=1,
        bos_piece=SEPARATOR,
        eos_id=-1,  # two ids may not share a piece; the separator ends documents as well
        pad_id=-1,
    )
    return model.getvalue()


def _too_small(vocab_size: int, needed: int) -> UsageError:
    characters = needed - _FIXED_PIECES
    return UsageError(
        f"a vocabulary of {vocab_size} pieces is too small: this text needs at least {needed}, "
        f"{_FIXED_PIECES} for bytes and special tokens and {characters} for characters",
        hint=f"--vocab-size {needed + 1000} or more, or --set model.vocab_size={needed + 1000}",
    )
