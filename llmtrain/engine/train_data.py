"""The data of a run: checked before planning, prepared by rank 0, opened by every rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmtrain.data.batches.conversations import pack_conversations
from llmtrain.data.batches.packing_cache import cached_packing
from llmtrain.data.batches.preferences import pack_preferences
from llmtrain.data.chat.marks import Marks
from llmtrain.data.corpus import Corpus
from llmtrain.data.shards.cache_entry import require_usable_cache
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.engine.find_run import ResolvedRun
from llmtrain.engine.references import (
    FirstModel,
    ReferencesOfRun,
    kept_references,
    references_of_run,
)
from llmtrain.engine.train_session import TrainSession
from llmtrain.files import cache_directory
from llmtrain.machine.allocator import return_free_memory
from llmtrain.machine.out_of_memory import memory_errors_mapped
from llmtrain.plan.planner import Plan
from llmtrain.prepare.changes import announce_changes, require_same_text
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import (
    Dataset,
    open_dataset,
    prepare_dataset,
    resolve_corpus,
    with_recorded_mixture,
)
from llmtrain.prepare.length import check_length
from llmtrain.train.distributed.world import device_of
from llmtrain.train.readers import AnyPacking
from llmtrain.train.run_directory.record import data_key, data_ranges


@dataclass(frozen=True, slots=True)
class _SharedData:
    """The message from rank 0 with which a rank opens the prepared data."""

    key: str
    tokenizer: Path
    ranges: list[tuple[int, int]]  # first token and number of tokens of each weighted source


class RunText:
    """The text of a run; its sources are resolved once, when they are first needed."""

    def __init__(self, resolved: ResolvedRun, session: TrainSession) -> None:
        self._resolved = resolved
        self._work = PrepareContext(1, session.observe, session.stop.check)

    @cached_property
    def corpus(self) -> Corpus:
        """The documents of its sources, fetched if remote. Raises DataError."""
        return resolve_corpus(self._resolved.profile.loaded.profile.data, self._work)

    def check(self) -> None:
        """Raise DataError if the text of a new run is too short for its context.

        And LlmtrainError if it cannot be prepared in the cache; both before any planning.
        """
        if self._resolved.recorded is not None:
            return
        profile = self._resolved.profile.loaded.profile
        require_usable_cache(cache_directory())
        corpus = self.corpus
        if profile.data.rows == "text":
            check_length(corpus, profile.data, profile.model.context, self._work)


@memory_errors_mapped()
def shared_dataset(
    resolved: ResolvedRun, plan: Plan, session: TrainSession, text: RunText
) -> Dataset:
    """Prepare the data on rank 0, and open it on every rank. Raises DataError."""
    profile = resolved.profile.loaded.profile
    work = PrepareContext(plan.workers.value, session.observe, session.stop.check)
    prepared: list[Dataset] = []

    def prepare() -> _SharedData:
        dataset = _dataset(resolved, work, text)
        prepared.append(dataset)
        if profile.data.rows == "text":
            packing_of(resolved, dataset, session)  # cached, for the other ranks to read
        ranges = [(source.first_token, source.tokens) for source in dataset.mixture]
        return _SharedData(dataset.shards.index.key, dataset.tokenizer_directory, ranges)

    shared = session.broadcast_from_main("data", _SharedData, prepare, session.stop.check)
    if prepared:
        return prepared[0]
    vocab_size = profile.model.vocab_size
    dataset = open_dataset(profile.data, vocab_size, shared.key, shared.tokenizer, work)
    return with_recorded_mixture(dataset, profile.data, shared.ranges)


def _dataset(resolved: ResolvedRun, work: PrepareContext, text: RunText) -> Dataset:
    profile = resolved.profile.loaded.profile
    vocab_size, context = profile.model.vocab_size, profile.model.context
    if resolved.recorded is None or resolved.checkpoint is None:
        return prepare_dataset(profile.data, vocab_size, work, context=context, corpus=text.corpus)
    recorded = resolved.recorded
    before, fingerprint = recorded.profile.data, recorded.text_fingerprint
    if profile.data.specs != before.specs and fingerprint is not None:
        require_same_text(text.corpus, profile.data, before, fingerprint, work)
    key = data_key(recorded.values, str(resolved.path))
    dataset = open_dataset(profile.data, vocab_size, key, resolved.checkpoint, work, context)
    announce_changes(lambda: text.corpus, profile.data, dataset.shards, work)
    return with_recorded_mixture(dataset, profile.data, data_ranges(recorded.values))


def packing_of(resolved: ResolvedRun, dataset: Dataset, session: TrainSession) -> AnyPacking | None:
    """Return how documents or conversations fill windows; None if they are concatenated.

    None of a mixture, whose sources are packed one by one.
    """
    profile = resolved.profile.loaded.profile
    if not profile.data.pads_windows or dataset.mixture:
        return None
    if profile.data.has_conversations:
        marks = Marks.of_separator(dataset.shards.index.separator_id)
        pack = pack_conversations if profile.data.rows == "chat" else pack_preferences
        return pack(
            dataset.shards.train, marks, profile.model.context, check_stop=session.stop.check
        )
    return cached_packing(dataset.shards, profile.model.context, session.stop.check)


def shared_references(
    resolved: ResolvedRun, plan: Plan, shards: PreparedData, session: TrainSession
) -> ReferencesOfRun | None:
    """Return what the first model gives to pairs of answers; None of other data.

    Rank 0 computes what is not kept, and the others read it.
    """
    profile, world = resolved.profile.loaded.profile, session.world
    if profile.data.rows != "preferences":
        return None
    assert resolved.initial_model is not None, "a profile without a model to fine-tune is refused"
    device = device_of(plan.device.value, world)
    first = FirstModel(profile, resolved.initial_model, plan.precision.value, device)
    found: list[ReferencesOfRun] = []

    def compute() -> str:
        found.append(references_of_run(first, shards, session.observe, session.stop.check))
        return_free_memory()
        return first.key

    session.broadcast_from_main("references", str, compute, session.stop.check)
    known = found[0] if found else kept_references(first, shards)
    assert known is not None, "rank 0 has computed them"
    return known
