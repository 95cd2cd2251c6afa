"""Training of BPE and unigram vocabularies on documents."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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

# sentencepiece learns BPE from words and their frequencies. Counting them here is faster than in
# its reader, and takes memory for distinct words only. A word is a run of spaces and the text up to
# the next space.
_WORD = re.compile(" *[^ ]+| +")
# sentencepiece's input format separates fields by tabs, so during training U+2409, which has the
# same script, replaces the tab.
_TAB, _TAB_PICTURE = "\t", "\u2409"

# sentencepiece silently skips every document with this character, its mark for rare characters.
_RARE_MARK = "\u2585"

# Shares of the text's characters that have pieces of their own; the rest is encoded in bytes. A
# script of many characters in a small vocabulary needs a lower one; the minimum is 0.98.
_CHARACTER_COVERAGES = (0.9999, 0.999, 0.99, 0.98)

# In a unigram model the characters in the names of bytes and special tokens are pieces themselves,
# so that a name in a text is encoded by them and not as the special token.
_NAME_CHARACTERS = "".join(sorted({*"<0x123456789ABCDEF>", *UNKNOWN, *SEPARATOR, *"reserved_"}))

# Limits on pieces: each digit is a piece of its own, and a run of spaces may be a piece.
_SPLITTING: dict[str, Any] = {"split_digits": True, "allow_whitespace_only_pieces": True}

MOST_RESERVED = 1024

# Of distinct words: sentencepiece takes some 100 bytes for each character of them, 1.7 GiB for so
# many. Text with spaces between words has far fewer; Chinese, or random letters, could take 7 GiB.
_MOST_WORD_CHARACTERS = 16 << 20

ModelKind = Literal["bpe", "unigram"]
SAMPLE_BYTES: Mapping[ModelKind, int] = {"bpe": 64 << 20, "unigram": 16 << 20}
VocabularySize = int | Callable[[int], int]


@dataclass(frozen=True, slots=True)
class VocabularySpec:
    """The size and kind of a vocabulary to be learned."""

    vocab_size: int  # including the fixed pieces
    kind: ModelKind = "bpe"
    reserved: int = 0  # number of control tokens reserved for later use

    @property
    def fixed_pieces(self) -> int:
        """Number of pieces that do not depend on the text."""
        return _FIXED_PIECES + self.reserved

    @property
    def required_characters(self) -> str:
        """Characters that are pieces regardless of the text."""
        # Encoded in bytes, the space would decode to "▁".
        return SPACE_MARK + (_NAME_CHARACTERS if self.kind == "unigram" else "")

    @property
    def fewest_pieces(self) -> int:
        """Minimum number of pieces of a vocabulary, for any text."""
        return self.fixed_pieces + len(self.required_characters)


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    """A trained tokenizer and statistics of its training text."""

    tokenizer: Tokenizer
    requested_vocab_size: int  # the tokenizer has fewer if the text does not yield as many
    character_coverage: float  # share of the text's characters that are pieces
    documents: int  # non-empty ones
    bytes_seen: int  # UTF-8 bytes of all documents, escaped
    bytes_used: int  # UTF-8 bytes in the sample


@dataclass(frozen=True, slots=True)
class LearnedVocabulary:
    """A vocabulary learned by sentencepiece."""

    model_proto: bytes  # serialized
    character_coverage: float  # the highest that the vocabulary size allows


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
    """Train a tokenizer of `vocab_size` pieces, or fewer if the documents do not yield as many.

    `vocab_size` may be a function of the documents' size in bytes. Training uses a uniform sample
    of at most `max_bytes` of UTF-8 (None: `SAMPLE_BYTES` of the kind) and is deterministic.
    `learn` replaces `learn_vocabulary`, for example to run it in another process. Raises
    UsageError if `vocab_size` is too small for the text, and DataError if there is no text.
    """
    sample = ByteSample(SAMPLE_BYTES[kind] if max_bytes is None else max_bytes)
    if isinstance(vocab_size, int):
        _require_room(VocabularySpec(vocab_size, kind, reserved))  # before reading the text
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
    """Learn a vocabulary from `texts`, which are read once.

    Raises UsageError if the vocabulary size is too small for the text, and DataError if
    sentencepiece fails.
    """
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
    """Return the tokenizer of a trained model; a unigram model is converted to tokenizer.json.

    sentencepiece sums scores over the whole text in 32 bits, so that near ties of a unigram model
    depend on a word's position. Hugging Face's library segments word by word instead.
    """
    if kind == "bpe":
        return Tokenizer.of_model(model)
    pieces = SentencePieceCodec(model).pieces()
    separator_id = next(token for token, piece in enumerate(pieces) if piece.kind == "control")
    read_as = Kind("huggingface", separator_id, escaped=False)  # tokenizer.json escapes
    return Tokenizer.read_as(read_as, unigram_json(pieces).encode())


def _bpe_model(texts: Iterable[str], spec: VocabularySpec) -> Callable[[float], bytes]:
    """Return a function from character coverage to the serialized BPE model of `texts`."""
    times: Counter[str] = Counter()
    for text in texts:
        times.update(_WORD.findall(text.replace(_TAB, _TAB_PICTURE)))
    kept = _most_frequent(times, _MOST_WORD_CHARACTERS)

    def learn(coverage: float) -> bytes:
        lines = (f"{word}\t{count}" for word, count in kept.items())
        model = _sentencepiece_model(lines, "tsv", spec, coverage)
        return with_pieces_respelt(model, _TAB_PICTURE.encode(), _TAB.encode())

    return learn


def _most_frequent(times: Counter[str], characters: int) -> Mapping[str, int]:
    """Return the most frequent words that have so many characters together, in their order."""
    if sum(map(len, times)) <= characters:
        return times
    kept = set[str]()
    for word, _ in times.most_common():
        characters -= len(word)
        if characters < 0:
            break
        kept.add(word)
    return {word: count for word, count in times.items() if word in kept}


def _unigram_model(texts: Iterable[str], spec: VocabularySpec) -> Callable[[float], bytes]:
    """Return a function from character coverage to the serialized unigram model of `texts`.

    Whole texts are kept, because the initial pieces are extracted from them.
    """
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
        hard_vocab_limit=False,  # fewer pieces are accepted
        character_coverage=coverage,
        num_threads=1,  # recorded in the model, so it would change the fingerprint
        minloglevel=3,
        # Lossless: no normalization, and characters without a piece are encoded in bytes.
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
