"""Training, from a request to a result: resolve, plan, prepare the data, train, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from llmtrain.data.batches.conversations import PackedConversations, pack_conversations
from llmtrain.data.batches.packing import Packing
from llmtrain.data.batches.packing_cache import cached_packing
from llmtrain.data.batches.prefetch import Prefetch
from llmtrain.data.chat.marks import Marks
from llmtrain.data.corpus import Corpus
from llmtrain.data.shards.cache_entry import require_usable_cache
from llmtrain.engine.energy import trained_with_energy
from llmtrain.engine.find_run import ResolvedRun, resolve
from llmtrain.engine.plan_run import plan_resolved, processes_of
from llmtrain.engine.record import (
    correct_forecast,
    recording_first_save,
    write_result,
    write_start,
)
from llmtrain.engine.request import TrainRequest
from llmtrain.engine.run_report import write_report
from llmtrain.engine.session_start import (
    difference_from_run,
    first_state,
    prompt_example,
    set_horizon,
    started_event,
    used_before_s,
)
from llmtrain.errors import InterruptedRunError
from llmtrain.files import cache_directory, free_bytes
from llmtrain.machine.allocator import return_free_memory
from llmtrain.machine.out_of_memory import memory_errors_mapped
from llmtrain.plan.forecast import forecast
from llmtrain.plan.past_runs import record_run
from llmtrain.plan.planned import Planned
from llmtrain.plan.planner import Plan
from llmtrain.plan.tensor_bytes import checkpoint_bytes
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
from llmtrain.profile.lora_shape import lora_shape_of
from llmtrain.profile.shape import shape_of
from llmtrain.progress import Note
from llmtrain.report.plots import require_plots
from llmtrain.tracking.observe import tracked
from llmtrain.tracking.tracker import require_trackers
from llmtrain.train.build import build_run, set_up_device
from llmtrain.train.checkpoint.format import Checkpoint, list_checkpoints, load_checkpoint
from llmtrain.train.checkpoint.saver import require_room
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Observer, TrainResult
from llmtrain.train.repetition import mixture_lines
from llmtrain.train.run_directory.record import data_key, data_ranges
from llmtrain.train.signals import StopRequest
from llmtrain.train.trainer import Trainer, TrainSetup
from llmtrain.units import format_bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrainSession:
    """The ranks that train, who is notified, what may stop them, and since when time counts."""

    world: World
    observe: Observer
    stop: StopRequest
    started_s: float = field(default_factory=time.monotonic)  # by the monotonic clock

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, with measuring the machine and preparing data."""
        return time.monotonic() - self.started_s

    def note(self, text: str, *, is_warning: bool = False) -> None:
        """Notify the observer."""
        self.observe(Note(text, is_warning=is_warning))

    def broadcast_from_main(
        self, key: str, kind: type[T], produce: Callable[[], T], check: Callable[[], None]
    ) -> T:
        """Return on every rank what `produce` returns on rank 0, sent as JSON of `kind`.

        `check` may raise to end the waiting of the other ranks.
        """
        if self.world.store is None:
            return produce()
        adapter, made = TypeAdapter(kind), list[T]()

        def send() -> str:
            made.append(produce())
            return adapter.dump_json(made[0]).decode()

        message = self.world.broadcast_from_main(key, send, check)
        return made[0] if made else adapter.validate_json(message, strict=True)


@dataclass(frozen=True, slots=True)
class _SharedData:
    """The message from rank 0 with which a rank opens the prepared data."""

    key: str
    tokenizer: Path
    ranges: list[tuple[int, int]]  # first token and number of tokens of each weighted source


@memory_errors_mapped()
def run_training(request: TrainRequest, session: TrainSession) -> TrainResult:
    """Train what the request asks for in this process and its group. Raises LlmtrainError."""
    with resolved_run(request, session) as resolved:
        return train_resolved(resolved, session)


@contextmanager
def resolved_run(request: TrainRequest, session: TrainSession) -> Iterator[ResolvedRun]:
    """Yield the run that rank 0 resolves; its directory is locked within the block."""
    world = session.world
    with ExitStack() as lock:

        def enter() -> ResolvedRun:
            return lock.enter_context(resolve(request, session.observe, world))

        yield session.broadcast_from_main("run", ResolvedRun, enter, lambda: None)


def ranks_to_launch(resolved: ResolvedRun, session: TrainSession) -> int:
    """Return how many processes to launch for the run; 1 where this one is enough.

    Raises UsageError, and before anything is launched DoesNotFitError, and DataError for a text
    that is too short.
    """
    processes = processes_of(resolved)
    if processes > 1:
        _checked_corpus(resolved, session)
        plan_resolved(resolved)
    return processes


@memory_errors_mapped()
def train_resolved(resolved: ResolvedRun, session: TrainSession) -> TrainResult:
    """Train the run to its end or to a stop request. Raises LlmtrainError."""
    world, profile = session.world, resolved.profile.loaded.profile
    if profile.report:
        require_plots()  # before hours of training
    require_trackers(profile.log_to)
    for text in resolved.notes:
        session.note(text)
    if resolved.is_finished:
        session.note(f"{resolved.path} is finished: {_finished(resolved).steps} steps")
        return _finished(resolved)
    resumed = load_checkpoint(resolved.checkpoint) if resolved.checkpoint is not None else None
    try:
        corpus = _checked_corpus(resolved, session) if world.is_main else None
        planned = _agreed_plan(resolved, session)
        if world.is_main:
            _require_disk_space(resolved, session)
        set_up_device(planned.plan, world)
        dataset = _shared_dataset(resolved, planned.plan, session, corpus)
        return_free_memory()  # tokenizing took more than training needs
        timeout_s = profile.device.collective_timeout
        with closing(dataset.shards), world.process_group(planned.plan.backend.value, timeout_s):
            return _train(resolved, resumed, planned, dataset, session)
    except InterruptedRunError:
        return replace(_result_so_far(resolved), stopped="interrupted")


def _checked_corpus(resolved: ResolvedRun, session: TrainSession) -> Corpus | None:
    """Return what a new run's text is. Raises DataError if it is too short.

    And LlmtrainError if it cannot be prepared in the cache; both before any planning.
    """
    if resolved.recorded is not None and resolved.checkpoint is not None:
        return None
    profile = resolved.profile.loaded.profile
    require_usable_cache(cache_directory())
    work = PrepareContext(1, session.observe, session.stop.check)
    corpus = resolve_corpus(profile.data, work)
    if profile.data.rows == "text":
        check_length(corpus, profile.data, profile.model.context, work)
    return corpus


def _agreed_plan(resolved: ResolvedRun, session: TrainSession) -> Planned:
    """Return rank 0's plan, on every rank."""
    world = session.world

    def plan() -> Planned:
        with session.stop.immediate():  # measuring and compiling take long and have no checks
            return plan_resolved(resolved, world, session.note)

    planned = session.broadcast_from_main("plan", Planned, plan, session.stop.check)
    if world.size == 1:
        return planned
    workload = replace(planned.workload, launched_local_processes=world.local_size)
    return replace(planned, workload=workload)


def _require_disk_space(resolved: ResolvedRun, session: TrainSession) -> None:
    """Raise LlmtrainError unless a checkpoint fits on the disk; warn unless all of them do."""
    profile, directory = resolved.profile.loaded.profile, resolved.directory.checkpoints
    each = checkpoint_bytes(
        shape_of(profile.model), profile.optim.name, lora_shape_of(profile.lora)
    )
    require_room(directory, each, "a checkpoint of this run")
    options = profile.checkpoint
    missing = options.keep_last + options.keep_best + 1 - len(list_checkpoints(directory))
    if free_bytes(directory) < missing * each:
        needed, free = format_bytes(missing * each), format_bytes(free_bytes(directory))
        session.note(
            f"{missing} more checkpoints will be saved in {directory}, which takes {needed}; "
            f"{free} are free",
            is_warning=True,
        )


@memory_errors_mapped()
def _shared_dataset(
    resolved: ResolvedRun, plan: Plan, session: TrainSession, corpus: Corpus | None
) -> Dataset:
    """Prepare the data on rank 0, and open it on every rank."""
    profile = resolved.profile.loaded.profile
    work = PrepareContext(plan.workers.value, session.observe, session.stop.check)
    prepared: list[Dataset] = []

    def prepare() -> _SharedData:
        dataset = _dataset(resolved, work, corpus)
        prepared.append(dataset)
        if profile.data.rows == "text":
            _packing(resolved, dataset, session)  # cached, for the other ranks to read
        ranges = [(source.first_token, source.tokens) for source in dataset.mixture]
        return _SharedData(dataset.shards.index.key, dataset.tokenizer_directory, ranges)

    shared = session.broadcast_from_main("data", _SharedData, prepare, session.stop.check)
    if prepared:
        return prepared[0]
    vocab_size = profile.model.vocab_size
    dataset = open_dataset(profile.data, vocab_size, shared.key, shared.tokenizer, work)
    return with_recorded_mixture(dataset, profile.data, shared.ranges)


def _dataset(resolved: ResolvedRun, work: PrepareContext, corpus: Corpus | None) -> Dataset:
    profile = resolved.profile.loaded.profile
    vocab_size, context = profile.model.vocab_size, profile.model.context
    if resolved.recorded is None or resolved.checkpoint is None:
        return prepare_dataset(profile.data, vocab_size, work, context=context, corpus=corpus)
    recorded = resolved.recorded
    before, fingerprint = recorded.profile.data, recorded.text_fingerprint
    if profile.data.specs != before.specs and fingerprint is not None:
        require_same_text(profile.data, before, fingerprint, work)
    key = data_key(recorded.values, str(resolved.path))
    dataset = open_dataset(profile.data, vocab_size, key, resolved.checkpoint, work, context)
    announce_changes(profile.data, dataset.shards, work)
    return with_recorded_mixture(dataset, profile.data, data_ranges(recorded.values))


def _packing(
    resolved: ResolvedRun, dataset: Dataset, session: TrainSession
) -> Packing | PackedConversations | None:
    """Return how documents or conversations fill windows; None if they are concatenated.

    None of a mixture, whose sources are packed one by one.
    """
    profile = resolved.profile.loaded.profile
    if not profile.data.pads_windows or dataset.mixture:
        return None
    if profile.data.rows == "chat":
        marks = Marks.of_separator(dataset.shards.index.separator_id)
        check_stop = session.stop.check
        return pack_conversations(
            dataset.shards.train, marks, profile.model.context, check_stop=check_stop
        )
    return cached_packing(dataset.shards, profile.model.context, session.stop.check)


def _train(
    resolved: ResolvedRun,
    resumed: Checkpoint | None,
    planned: Planned,
    dataset: Dataset,
    session: TrainSession,
) -> TrainResult:
    profile, world, shards = resolved.profile.loaded.profile, session.world, dataset.shards
    initial = resolved.initial_model
    packing = _packing(resolved, dataset, session)
    if isinstance(packing, PackedConversations):
        cut = packing.describe(profile.model.context)
        if cut is not None and world.is_main:
            session.note(cut)
    run = build_run(
        profile,
        planned.plan,
        world,
        shards.train,
        resumed,
        shards.index.separator_id,
        packing,
        dataset.mixture,
        initial.read_weights if initial is not None else None,
        None if initial is None else initial.adapter(profile.lora),
    )
    horizon = resolved.horizon.in_steps(run.batches.num_windows, run.windows_per_step)
    step = run.position.step
    set_horizon(run.position, resolved, horizon)
    if (difference := difference_from_run(resolved, resumed, planned.plan)) is not None:
        session.note(f"{difference}: not bitwise from step {step}", is_warning=True)
    expected = forecast(profile, planned, elapsed_s=session.elapsed_s)
    rate = expected.tokens_per_s
    if world.is_main:
        write_start(resolved, planned, expected, dataset, step)
    for line in mixture_lines(dataset.mixture, horizon.steps, planned.workload.tokens_per_step):
        session.note(line)
    session.observe(started_event(resolved, planned, dataset, step, horizon))
    trackers = profile.log_to if world.is_main else ()
    with (
        tracked(session.observe, trackers, resolved.path, profile.values(), step) as observe,
        Prefetch(run.batches.read) as run.prefetch,
    ):
        setup = TrainSetup(
            run=run,
            profile=profile,
            horizon=horizon,
            directory=resolved.directory,
            data=shards,
            tokenizer=dataset.tokenizer,
            mixture=dataset.mixture,
            workload=planned.workload,
            peak_flops=planned.peak_flops,
            stop=session.stop,
            observe=recording_first_save(resolved.directory, observe),
            used_before_s=used_before_s(resolved),
            starting_s=session.elapsed_s,
            forecast_tokens_per_s=None if rate is None else rate.value,
            correct_forecast=partial(correct_forecast, resolved.directory, planned),
        )
        state = first_state(resolved, planned.plan, is_bitwise=difference is None)
        result = trained_with_energy(Trainer(setup, state))
    if not world.is_main:
        return result
    predicted = (resolved.recorded and resolved.recorded.forecast) or expected.document()
    result = replace(
        _with_prediction(result, predicted), prompt_example=prompt_example(profile.data, dataset)
    )
    _record(resolved, planned, run.plan, result)
    if profile.report:
        _write_report(resolved, session)
    return result


def _with_prediction(result: TrainResult, predicted: Mapping[str, Any]) -> TrainResult:
    """Return the result with the rate and the time that were predicted before the run."""
    rate, seconds = (
        (predicted.get(name) or {}).get("value") for name in ("tokens_per_s", "seconds")
    )
    return replace(result, predicted_tokens_per_s=rate, predicted_seconds=seconds)


def _record(resolved: ResolvedRun, planned: Planned, plan: Plan, result: TrainResult) -> None:
    """Save the result in run.yaml, and its rate for the next forecast by this plan."""
    record_run(
        planned.facts,
        planned.workload,
        plan,
        step_s=result.step_s,
        steps=result.trained_steps,
        peak_memory_bytes=result.peak_memory_bytes,
        waited_share=result.waited_share,
    )
    write_result(resolved.directory, result)


def _write_report(resolved: ResolvedRun, session: TrainSession) -> None:
    """Write report.html; a full disk is a warning, as the run itself is saved."""
    try:
        session.note(f"report: {write_report(resolved.directory)}")
    except OSError as error:
        session.note(f"the report was not written: {error.strerror}", is_warning=True)


def _finished(resolved: ResolvedRun) -> TrainResult:
    return replace(_result_so_far(resolved), already_finished=True)


def _result_so_far(resolved: ResolvedRun) -> TrainResult:
    """Return the result of a session that trains nothing: the run's state before it."""
    state = resolved.state
    return TrainResult(
        run=resolved.path,
        checkpoint=resolved.checkpoint,
        steps=state.step if state is not None else 0,
        tokens=state.tokens if state is not None else 0,
        seconds=state.elapsed_s if state is not None else 0.0,
        tokens_per_s=None,
        train_loss=state.train_loss if state is not None else None,
        val_loss=state.val_loss if state is not None else None,
        val_bpb=state.val_bpb if state is not None else None,
        peak_memory_bytes=state.peak_memory_bytes if state is not None else 0,
        predicted_peak_bytes=None,
        stopped="done",
    )
