"""Survey data before training on it: what `llmtrain data inspect` shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from llmtrain.data.corpus import Corpus
from llmtrain.data.quality.dropped import DropCount
from llmtrain.data.quality.languages import LanguageDetector, has_language_detector
from llmtrain.data.quality.leakage import Leakage
from llmtrain.data.quality.minhash import MinHasher, has_minhash
from llmtrain.data.quality.survey import SampledDocument, Survey, survey
from llmtrain.machine.probe import read_facts
from llmtrain.plan.auto_profile import choose_tokens_per_step
from llmtrain.plan.decisions import may_use_gpu
from llmtrain.prepare.context import MeasuredText, PrepareContext
from llmtrain.prepare.dataset import clean_corpus, resolve_corpus
from llmtrain.prepare.leakage_cache import cached_leakage
from llmtrain.prepare.length import with_working_fraction
from llmtrain.prepare.tokenizer import ensure_tokenizer
from llmtrain.profile.schema import Profile
from llmtrain.tokenizer import open_tokenizer

_SAMPLES = 3
_SAMPLE_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Epochs:
    """The number of times that a run of a profile reads the text; None if unknown."""

    profile: str
    trained_tokens: int | None  # None under a time or a number of epochs
    epochs: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class DataReport:
    """A survey of data. A value is None if the library that computes it is not installed."""

    sources: list[dict[str, object]]
    skipped: dict[str, int]  # files by reason
    only_first: int | None  # documents; None: all
    left_out: tuple[DropCount, ...]
    found: Survey
    leakage: Leakage | None
    tokenizer: Path | None
    epochs: Epochs | None

    @property
    def samples(self) -> tuple[SampledDocument, ...]:
        """A few of the documents that were drawn, with no more than a page of each."""
        few = self.found.drawn[:: max(1, len(self.found.drawn) // _SAMPLES)][:_SAMPLES]
        return tuple(replace(each, beginning=each.beginning[:_SAMPLE_CHARACTERS]) for each in few)


def inspect_data(
    profile: Profile, work: PrepareContext, *, only_first: int | None, is_for_profile: bool
) -> DataReport:
    """Return a survey of the profile's data as training reads it. Raises DataError, UsageError.

    Tokens are counted with the tokenizer that the profile names. If it names none and
    `is_for_profile`, with the one that training would use, trained now if it is not cached,
    unless only the first documents are read.
    """
    section = profile.data
    whole = resolve_corpus(section, work)
    cleaned = clean_corpus(replace(whole, first=only_first), section, work)
    tokenizer = _tokenizer(cleaned.corpus, profile, work, only_first, is_for_profile)
    found = survey(
        work.with_progress("reading", cleaned.corpus),
        encoder=open_tokenizer(tokenizer) if tokenizer is not None else None,
        threads=work.workers,
        minhasher=MinHasher() if has_minhash() else None,
        detector=LanguageDetector() if has_language_detector() else None,
        check_stop=work.check_stop,
    )
    return DataReport(
        sources=whole.describe(),
        skipped=whole.skipped_by_reason,
        only_first=only_first,
        left_out=cleaned.left_out,
        found=found,
        leakage=cached_leakage(MeasuredText(cleaned.corpus, found.facts, section, work)),
        tokenizer=tokenizer,
        epochs=_epochs(profile, found.tokens) if is_for_profile else None,
    )


def _tokenizer(
    corpus: Corpus,
    profile: Profile,
    work: PrepareContext,
    only_first: int | None,
    is_for_profile: bool,
) -> Path | None:
    section = profile.data
    if section.tokenizer != "auto":
        return Path(section.tokenizer)
    if not is_for_profile or only_first is not None:
        return None
    facts = work.with_progress("reading", corpus).measure(work.check_stop)
    text = with_working_fraction(MeasuredText(corpus, facts, section, work), profile.model.context)
    return ensure_tokenizer(text, profile.model.vocab_size)


def _epochs(profile: Profile, tokens: int | None) -> Epochs:
    train, name = profile.train, profile.name
    if train.epochs is not None:
        return Epochs(name, None, train.epochs, "asked for")
    if train.time is not None:
        return Epochs(name, None, None, "under train.time it depends on the machine")
    trained = train.tokens
    if train.steps is not None:
        facts = read_facts(tries_gpus=may_use_gpu(profile.device))
        trained = train.steps * choose_tokens_per_step(profile, facts, measure=False).value
    if trained is None:
        return Epochs(name, None, None, "the profile does not say how long to train")
    if tokens is None:
        return Epochs(name, trained, None, "the tokens of the text are not counted")
    share = 1 - profile.data.validation_fraction
    return Epochs(name, trained, trained / (tokens * share), "of the training part")
