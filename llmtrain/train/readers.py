"""Which windows a run reads of its tokens: concatenated or packed documents, conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain.data.batches.conversations import (
    END,
    ConversationReader,
    PackedConversations,
    pack_conversations,
)
from llmtrain.data.batches.mixture import MixedBatches, MixedSource, TokenRange
from llmtrain.data.batches.packing import PackedReader, Packing, pack
from llmtrain.data.batches.preferences import (
    PackedPreferences,
    PreferenceReader,
    References,
    pack_preferences,
)
from llmtrain.data.batches.windows import BatchReader, Tokens, WindowReader
from llmtrain.data.chat.marks import Marks
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.profile.schema import DataSection, Profile

AnyPacking = Packing | PackedConversations | PackedPreferences


@dataclass(frozen=True, slots=True)
class TrainTokens:
    """The tokens that a run is trained on, and how documents in them fill windows.

    `separator_id`: the token that documents begin with. `packing`: how documents are packed into
    windows, unless they are concatenated. `mixture`: the parts of the stream that are read by
    weight, each packed by itself; if empty, the stream is read as a whole. `references`: of pairs
    of answers.
    """

    stream: TokenStream
    separator_id: int | None = None
    packing: AnyPacking | None = None
    mixture: Sequence[MixedSource] = ()
    references: References | None = None


def window_reader(profile: Profile, train: TrainTokens) -> WindowReader:
    """Return the reader of the run's windows, as the profile packs them."""
    context, seed, separator_id = profile.model.context, profile.train.seed, train.separator_id

    def reader_of(tokens: Tokens, seed: int, packing: AnyPacking | None = None) -> WindowReader:
        if profile.data.rows == "chat":
            assert separator_id is not None, "the marks of conversations are known by it"
            return conversation_reader(tokens, separator_id, context, seed, packing)
        if profile.data.rows == "preferences":
            assert separator_id is not None, "the marks of conversations are known by it"
            assert train.references is not None, "they are computed before training"
            first_token = tokens.first_token if isinstance(tokens, TokenRange) else 0
            references = train.references.after(first_token)
            return preference_reader(tokens, separator_id, context, seed, references, packing)
        if profile.data.packing == "concatenate":
            return BatchReader(tokens, context, seed)
        assert separator_id is not None, "packing needs the token that documents begin with"
        assert packing is None or isinstance(packing, Packing), "these are documents"
        packed = packing or pack(tokens, separator_id, context)
        return PackedReader(tokens, packed, separator_id, context, seed)

    if train.mixture:
        return MixedBatches(train.stream, train.mixture, seed, reader_of)
    return reader_of(train.stream, seed, train.packing)


def conversation_reader(
    tokens: Tokens,
    separator_id: int,
    context: int,
    seed: int,
    packing: AnyPacking | None = None,
) -> ConversationReader:
    """Return a reader of conversations, packed now unless they are. Raises DataError."""
    marks = Marks.of_separator(separator_id)
    assert packing is None or isinstance(packing, PackedConversations), "these are conversations"
    packed = packing or pack_conversations(tokens, marks, context)
    return ConversationReader(tokens, packed, marks, context, seed)


def preference_reader(
    tokens: Tokens,
    separator_id: int,
    context: int,
    seed: int,
    references: References,
    packing: AnyPacking | None = None,
) -> PreferenceReader:
    """Return a reader of pairs, packed now unless they are. Raises DataError."""
    marks = Marks.of_separator(separator_id)
    assert packing is None or isinstance(packing, PackedPreferences), "these are pairs"
    packed = packing or pack_preferences(tokens, marks, context)
    return PreferenceReader(tokens, packed, marks, context, seed, references)


def masking_separator(section: DataSection, separator_id: int | None) -> int | None:
    """Return the target that attention does not look past; None unless documents are masked."""
    if section.has_conversations:
        return END
    if not section.mask_documents:
        return None
    assert separator_id is not None, "masking needs the token that documents begin with"
    return separator_id
