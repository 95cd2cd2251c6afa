"""Training, from a request to a result: resolve, plan, prepare the data, train, record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial

from llmtrain.data.batches.conversations import PackedConversations
from llmtrain.data.batches.preferences import PackedPreferences, References
from llmtrain.data.batches.prefetch import Prefetch
from llmtrain.engine.agreed_plan import agreed_plan
from llmtrain.engine.energy import trained_with_energy
from llmtrain.engine.find_run import ResolvedRun, resolve
from llmtrain.engine.plan_run import plan_resolved, processes_of
from llmtrain.engine.record import (
    correct_forecast,
    launched_ranks,
    recording_first_save,
    write_start,
)
from llmtrain.engine.request import TrainRequest
from llmtrain.engine.session_start import (
    difference_from_run,
    first_state,
    set_horizon,
    started_event,
    used_before_s,
)
from llmtrain.engine.train_data import RunText, packing_of, shared_dataset, shared_references
from llmtrain.engine.train_result import finished_result, recorded_result, result_so_far
from llmtrain.engine.train_session import TrainSession
from llmtrain.errors import InterruptedRunError
from llmtrain.files import free_bytes
from llmtrain.machine.allocator import return_free_memory
from llmtrain.machine.out_of_memory import memory_errors_mapped
from llmtrain.plan.decisions import remark_on_shares
from llmtrain.plan.forecast import Forecast, forecast
from llmtrain.plan.planned import Planned
from llmtrain.plan.tensor_bytes import checkpoint_bytes_of
from llmtrain.prepare.dataset import Dataset
from llmtrain.profile.horizon import Horizon
from llmtrain.tracking.observe import tracked
from llmtrain.tracking.tracker import require_trackers
from llmtrain.train.build import build_run, set_up_device
from llmtrain.train.checkpoint.format import Checkpoint, load_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.checkpoint.saver import require_room
from llmtrain.train.distributed.world import device_of
from llmtrain.train.events import Observer, TrainResult
from llmtrain.train.loop import Run
from llmtrain.train.readers import TrainTokens
from llmtrain.train.repetition import mixture_lines
from llmtrain.train.train_setup import TrainSetup
from llmtrain.train.trainer import Trainer
from llmtrain.units import format_bytes


@memory_errors_mapped()
def run_training(request: TrainRequest, session: TrainSession) -> TrainResult:
    """Train what the request asks for in this process and its group. Raises LlmtrainError."""
    with resolved_run(request, session) as resolved:
        return train_resolved(resolved, session, RunText(resolved, session))


@contextmanager
def resolved_run(request: TrainRequest, session: TrainSession) -> Iterator[ResolvedRun]:
    """Yield the run that rank 0 resolves; its directory is locked within the block."""
    world = session.world
    with ExitStack() as lock:

        def enter() -> ResolvedRun:
            asked = replace(request, announce=session.note)
            try:
                with session.stop.immediate():  # measuring takes long and has no checks
                    return lock.enter_context(resolve(asked, session.observe, world))
            except InterruptedRunError:  # the run ends at its first check, and says so
                asked = replace(request, measures=False)
                return lock.enter_context(resolve(asked, session.observe, world))

        yield session.broadcast_from_main("run", ResolvedRun, enter, lambda: None)


def ranks_to_launch(resolved: ResolvedRun, session: TrainSession, text: RunText) -> int:
    """Return how many processes to launch for the run; 1 where this one is enough.

    Raises UsageError, and before anything is launched DoesNotFitError, and DataError for a text
    that is too short.
    """
    try:
        with session.stop.immediate():  # timing takes long and has no checks
            processes = processes_of(resolved, session.note)
    except InterruptedRunError:
        return 1  # which ends before its first step, and says so
    if processes > 1:
        text.check()
        plan_resolved(resolved)
    return processes


@memory_errors_mapped()
def train_resolved(resolved: ResolvedRun, session: TrainSession, text: RunText) -> TrainResult:
    """Train the run to its end or to a stop request. Raises LlmtrainError."""
    world, profile = session.world, resolved.profile.loaded.profile
    if profile.report:
        from llmtrain.report.plots import require_plots

        require_plots()  # before hours of training
    require_trackers(profile.log_to)
    for note in resolved.notes:
        session.note(note)
    if resolved.is_finished:
        session.note(f"{resolved.path} is finished: {finished_result(resolved).steps} steps")
        return finished_result(resolved)
    resumed = load_checkpoint(resolved.checkpoint) if resolved.checkpoint is not None else None
    try:
        if world.is_main:
            text.check()
        resolved, planned = agreed_plan(resolved, session)
        profile = resolved.profile.loaded.profile
        if world.is_main:
            _require_disk_space(resolved, planned, session)
        set_up_device(planned.plan, world)
        dataset = shared_dataset(resolved, planned.plan, session, text)
        return_free_memory()  # tokenizing took more than training needs
        limit = profile.exchange_timeout_s, profile.exchange_timeout_name
        with closing(dataset.shards), world.process_group(planned.plan.backend.value, *limit):
            return _train(resolved, resumed, planned, dataset, session)
    except InterruptedRunError:
        return replace(result_so_far(resolved), stopped="interrupted")


def _require_disk_space(resolved: ResolvedRun, planned: Planned, session: TrainSession) -> None:
    """Raise LlmtrainError unless a checkpoint fits on the disk; warn unless all of them do."""
    profile, directory = resolved.profile.loaded.profile, resolved.directory.checkpoints
    each = checkpoint_bytes_of(planned.workload, session.world.size)
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


def _train(
    resolved: ResolvedRun,
    resumed: Checkpoint | None,
    planned: Planned,
    dataset: Dataset,
    session: TrainSession,
) -> TrainResult:
    """Build the run, train it, and on rank 0 record what came of it."""
    profile = resolved.profile.loaded.profile
    references = shared_references(resolved, planned.plan, dataset.shards, session)
    known = None if references is None else references.train
    run = _built(resolved, resumed, planned, dataset, known, session)
    horizon = resolved.horizon.in_steps(run.batches.num_windows, run.windows_per_step)
    set_horizon(run.position, resolved, horizon)
    difference = difference_from_run(resolved, resumed, planned.plan)
    if difference is not None:
        text = f"{difference}: not bitwise from step {run.position.step}"
        session.note(text, is_warning=True)
    expected = forecast(profile, planned, elapsed_s=session.elapsed_s)
    rate = expected.tokens_per_s
    _announce_start(resolved, planned, expected, dataset, run.position.step, horizon, session)
    with (
        _tracked(resolved, run.position.step, session) as observe,
        Prefetch(run.batches.read) as run.prefetch,
    ):
        setup = TrainSetup(
            run=run,
            profile=profile,
            horizon=horizon,
            directory=resolved.directory,
            data=dataset.shards,
            tokenizer=dataset.tokenizer,
            mixture=dataset.mixture,
            workload=planned.workload,
            peak_flops=planned.peak_flops,
            stop=session.stop,
            observe=recording_first_save(resolved.directory, observe),
            used_before_s=used_before_s(resolved),
            starting_s=session.elapsed_s,
            forecast_tokens_per_s=None if rate is None else rate.value,
            validation_references=None if references is None else references.validation,
            correct_forecast=partial(correct_forecast, resolved.directory, planned),
        )
        state = first_state(resolved, planned.plan, is_bitwise=difference is None)
        result = trained_with_energy(Trainer(setup, state))
    if not session.world.is_main:
        return result
    return recorded_result(resolved, planned, run.plan, expected, dataset, result, session)


def _announce_start(
    resolved: ResolvedRun,
    planned: Planned,
    expected: Forecast,
    dataset: Dataset,
    step: int,
    horizon: Horizon,
    session: TrainSession,
) -> None:
    """Write what the run begins with, on rank 0, and notify the observer."""
    plan = planned.plan
    ranks = launched_ranks(
        session.world, plan.backend.value, device_of(plan.device.value, session.world)
    )
    if session.world.is_main:
        write_start(resolved, planned, expected, dataset, step, ranks)
    remark = remark_on_shares(planned.workload, plan.processes.value, plan.accumulation.value)
    if remark is not None:
        session.note(remark)
    for line in mixture_lines(dataset.mixture, horizon.steps, planned.workload.tokens_per_step):
        session.note(line)
    session.observe(started_event(resolved, planned, dataset, step, horizon))


def _tracked(
    resolved: ResolvedRun, step: int, session: TrainSession
) -> AbstractContextManager[Observer]:
    """Return the observer, which rank 0's trackers are fed from as well."""
    profile = resolved.profile.loaded.profile
    trackers = profile.log_to if session.world.is_main else ()
    return tracked(session.observe, trackers, resolved.path, profile.values(), step)


def _built(
    resolved: ResolvedRun,
    resumed: Checkpoint | None,
    planned: Planned,
    dataset: Dataset,
    references: References | None,
    session: TrainSession,
) -> Run:
    """Return the run at the step where this session begins."""
    profile, initial = resolved.profile.loaded.profile, resolved.initial_model
    packing = packing_of(resolved, dataset, session)
    if isinstance(packing, PackedConversations | PackedPreferences) and session.world.is_main:
        cut = packing.describe(profile.model.context)
        if cut is not None:
            session.note(cut)
    shards = dataset.shards
    return build_run(
        profile,
        planned.plan,
        session.world,
        TrainTokens(shards.train, shards.index.separator_id, packing, dataset.mixture, references),
        resumed,
        None if initial is None else initial.read_weights,
        None if initial is None else initial.adapter(profile.lora),
    )
