"""Train a tokenizer on the text of sources."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import announce_skipped, resolve_corpus
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note
from llmtrain.recipe.vocab_size import vocabulary_size
from llmtrain.tokenizer import TrainedTokenizer, train_tokenizer
from llmtrain.tokenizer.train_process import train_in_process
from llmtrain.tokenizer.training import ModelKind


@dataclass(frozen=True, slots=True)
class VocabularyOptions:
    """The kind and number of pieces; without `pieces`, the text and the model determine it."""

    pieces: int | None
    kind: ModelKind = "bpe"
    reserved: int = 0
    parameters: int | None = None  # of the model, beside its embeddings
    max_bytes: int | None = None  # of text to learn from; None: as much as the kind allows


@dataclass(frozen=True, slots=True)
class LearnedTokenizer:
    """A trained tokenizer, the reason for its number of pieces, and the skipped files."""

    trained: TrainedTokenizer
    pieces_reason: str | None
    skipped: dict[str, int]  # files by reason
    sources: tuple[str, ...]  # the names of the sources


def learn_tokenizer(
    section: DataSection, options: VocabularyOptions, prepare: PrepareContext
) -> LearnedTokenizer:
    """Train a tokenizer on the section's sources. Raises DataError and UsageError."""
    corpus = resolve_corpus(section, prepare)
    announce_skipped(corpus, prepare)
    reason: str | None = None

    def chosen(text_bytes: int) -> int:
        nonlocal reason
        choice = vocabulary_size(text_bytes, options.parameters)
        reason = choice.reason
        prepare.observe(Note(f"vocabulary of {choice.value} pieces: {reason}"))
        return choice.value

    trained = train_tokenizer(
        prepare.training_texts(prepare.with_progress("sampling text", corpus).documents()),
        vocab_size=chosen if options.pieces is None else options.pieces,
        kind=options.kind,
        reserved=options.reserved,
        max_bytes=options.max_bytes,
        learn=partial(train_in_process, check_stop=prepare.check_stop),
    )
    pieces = trained.tokenizer.vocab_size
    if pieces < trained.requested_vocab_size:
        text = f"the text gives only {pieces} pieces of {trained.requested_vocab_size}"
        prepare.observe(Note(text, is_warning=True))
    sources = tuple(source.spec for source in corpus.sources)
    return LearnedTokenizer(trained, reason, corpus.skipped_by_reason, sources)
