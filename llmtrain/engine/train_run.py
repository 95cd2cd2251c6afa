"""Training, from a request to a result: plan, data, run, session, record."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmtrain.data.batches.packing import Packing
from llmtrain.data.batches.packing_cache import cached_packing
from llmtrain.data.batches.prefetch import Prefetch
from llmtrain.engine.beginning import (
    set_horizon,
    started_event,
    state_to_begin_with,
    used_before_s,
)
from llmtrain.engine.energy import trained_with_energy
from llmtrain.engine.explain import explain_run
from llmtrain.engine.plan_run import plan_run, workload_of
from llmtrain.engine.record import begin_record, end_record
from llmtrain.engine.recorded import recorded_numerics, recorded_plan
from llmtrain.engine.request import Chosen, TrainRequest
from llmtrain.engine.result import nothing_trained, result_of
from llmtrain.engine.resume import Place, Target, has_new_horizon, locate, target_at
from llmtrain.errors import InterruptedRunError
from llmtrain.files import free_bytes
from llmtrain.machine.allocator import return_free_memory
from llmtrain.machine.out_of_memory import memory_errors_mapped
from llmtrain.machine.probe import read_facts
from llmtrain.plan.activation_bytes import checkpoint_bytes
from llmtrain.plan.decisions import may_use_gpu
from llmtrain.plan.forecast import Forecast, forecast
from llmtrain.plan.past_runs import last_run, record_run
from llmtrain.plan.planned import Planned, planned_with
from llmtrain.plan.planner import Plan, plan_from_document
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import Dataset, open_dataset, prepare_dataset, with_recorded_mixture
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import shape_of
from llmtrain.progress import Note
from llmtrain.train.build import build_run, set_up_device
from llmtrain.train.checkpoint.format import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
)
from llmtrain.train.checkpoint.saver import require_room
from llmtrain.train.distributed.signals import StopRequest
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Observer, TrainResult
from llmtrain.train.repetition import mixture_lines
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.record import data_key, data_ranges
from llmtrain.train.trainer import Trainer, TrainSetup
from llmtrain.units import format_bytes


@dataclass(frozen=True, slots=True)
class TrainSession:
    """Who trains, who is told, who may stop it, and since when the time counts."""

    world: World
    observe: Observer
    stop: StopRequest
    started_s: float = field(default_factory=time.monotonic)  # by the monotonic clock

    @property
    def elapsed_s(self) -> float:
        """Seconds since then: starting, measuring the machine and preparing data are in them."""
        return time.monotonic() - self.started_s


@memory_errors_mapped()
def run_training(request: TrainRequest, sitting: TrainSession) -> TrainResult:
    """The request is trained, or was already. Raises LlmtrainError."""
    with ExitStack() as held:
        return _run_at(_shared_place(request, sitting, held), request, sitting)


def _run_at(place: Place, request: TrainRequest, sitting: TrainSession) -> TrainResult:
    world = sitting.world
    target = target_at(request, place)
    profile = target.loaded.profile
    resumed = load_checkpoint(target.checkpoint) if target.checkpoint is not None else None
    finished = _finished(target, resumed)
    if finished is not None:
        sitting.observe(Note(f"{target.directory.path} is finished: {finished.steps} steps"))
        return finished
    try:
        planned, is_same_plan = _agreed_plan(target, sitting)
        _require_room(target, sitting)
        set_up_device(planned.plan, world)
        dataset = _shared_dataset(target, profile, planned.plan, sitting)
        return_free_memory()  # tokenizing took more than training keeps
        timeout_s = profile.device.collective_timeout
        with closing(dataset.shards), world.process_group(planned.plan.backend.value, timeout_s):
            return _train(request, target, resumed, planned, dataset, sitting, is_same_plan)
    except InterruptedRunError:
        return nothing_trained(target, resumed)


def launch_size(request: TrainRequest) -> int:
    """How many processes the request's plan wants on this machine. Changes nothing."""
    return explain_run(request).planned.plan.processes.value


def _shared_place(request: TrainRequest, sitting: TrainSession, held: ExitStack) -> Place:
    """The place that rank 0 found, on every rank; its own until `held` is closed."""

    def find() -> str:
        place = locate(request, sitting.observe, held)
        chosen = place.chosen
        return json.dumps(
            [
                str(place.directory.path),
                str(place.checkpoint) if place.checkpoint else None,
                chosen.document() if chosen else None,
            ]
        )

    path, checkpoint, chosen = json.loads(sitting.world.from_main("place", find))
    return Place(
        RunDirectory(Path(path)),
        Path(checkpoint) if checkpoint else None,
        Chosen.from_document(chosen) if chosen else None,
    )


def _agreed_plan(target: Target, sitting: TrainSession) -> tuple[Planned, bool]:
    """Rank 0's plan, on every rank; and whether it is the one that the run was begun with."""
    world, profile = sitting.world, target.loaded.profile
    facts = read_facts(
        cuda_index=world.local_rank if world.size > 1 else None,
        tries_gpus=may_use_gpu(profile.device),
    )
    planned_here: list[Planned] = []

    def decide() -> str:
        kept = recorded_plan(target, facts, world)
        if kept is not None:
            return json.dumps([kept.document(), True, None])
        tell = lambda text: sitting.observe(Note(text))  # noqa: E731
        with sitting.stop.immediate():  # measuring and compiling take long, and have no checks
            made = plan_run(profile, world=world, facts=facts, announce=tell)
        planned_here.append(made)
        same = target.record is None or made.plan.numerics() == recorded_numerics(target.record)
        return json.dumps([made.plan.document(), same, made.peak_flops])

    document, is_same, peak_flops = json.loads(world.from_main("plan", decide, sitting.stop.check))
    if planned_here:
        return planned_here[0], is_same
    plan, workload = plan_from_document(document), workload_of(profile, world, facts)
    if peak_flops is None and target.record is not None:
        peak_flops = target.record.get("peak_flops")
    planned = planned_with(plan, workload, facts, kept=last_run(facts, workload, plan))
    return replace(planned, peak_flops=peak_flops), is_same


def _require_room(target: Target, sitting: TrainSession) -> None:
    """The disk has room for a checkpoint, or LlmtrainError; a warning where not for all of them."""
    profile, directory = target.loaded.profile, target.directory.checkpoints
    each = checkpoint_bytes(shape_of(profile.model), profile.optim.name)
    if not sitting.world.is_main:
        return
    require_room(directory, each, "a checkpoint of this run")
    options = profile.checkpoint
    missing = options.keep_last + options.keep_best + 1 - len(list_checkpoints(directory))
    if free_bytes(directory) < missing * each:
        needed, free = format_bytes(missing * each), format_bytes(free_bytes(directory))
        text = f"{missing} more checkpoints are to be kept in {directory}, which needs {needed}; "
        sitting.observe(Note(f"{text}{free} are free", is_warning=True))


@memory_errors_mapped()
def _shared_dataset(target: Target, profile: Profile, plan: Plan, sitting: TrainSession) -> Dataset:
    """The data that rank 0 prepared, opened on every rank."""
    work = PrepareContext(plan.workers.value, sitting.observe, sitting.stop.check)
    prepared: list[Dataset] = []

    def make() -> str:
        prepared.append(_dataset(target, profile, work))
        dataset = prepared[0]
        _packing(profile, dataset, sitting)  # kept, for the others to find
        ranges = [(source.first_token, source.tokens) for source in dataset.mixture]
        return json.dumps([dataset.shards.index.key, str(dataset.tokenizer_directory), ranges])

    key, directory, ranges = json.loads(sitting.world.from_main("data", make, sitting.stop.check))
    if prepared:
        return prepared[0]
    dataset = open_dataset(profile.data, profile.model.vocab_size, key, Path(directory), work)
    return with_recorded_mixture(dataset, profile.data, ranges)


def _packing(profile: Profile, dataset: Dataset, sitting: TrainSession) -> Packing | None:
    """How documents are in windows, where the profile does not have them concatenated.

    None of a mixture, whose sources are packed each by itself.
    """
    if profile.data.packing == "concatenate" or dataset.mixture:
        return None
    return cached_packing(dataset.shards, profile.model.context, sitting.stop.check)


def _dataset(target: Target, profile: Profile, work: PrepareContext) -> Dataset:
    vocab_size = profile.model.vocab_size
    if target.record is None or target.checkpoint is None:
        return prepare_dataset(profile.data, vocab_size, work)
    key = data_key(target.record, str(target.directory.path))
    dataset = open_dataset(profile.data, vocab_size, key, target.checkpoint, work)
    return with_recorded_mixture(dataset, profile.data, data_ranges(target.record))


def _train(
    request: TrainRequest,
    target: Target,
    resumed: Checkpoint | None,
    planned: Planned,
    dataset: Dataset,
    sitting: TrainSession,
    is_same_plan: bool,
) -> TrainResult:
    profile, world = target.loaded.profile, sitting.world
    shards = dataset.shards
    separator_id = shards.index.separator_id
    packing = _packing(profile, dataset, sitting)
    run = build_run(
        profile,
        planned.plan,
        world,
        shards.train,
        resumed,
        separator_id,
        packing,
        dataset.mixture,
    )
    horizon = target.horizon.in_steps(run.batches.num_windows, run.windows_per_step)
    set_horizon(run.position, target, horizon)
    if resumed is not None and not planned.plan.has_numerics(resumed.state.numerics):
        is_same_plan = False  # it changed after this checkpoint: see run.yaml's sittings
    state = state_to_begin_with(resumed, planned.plan, is_same_plan)
    if resumed is not None and not is_same_plan:
        sitting.observe(
            Note(
                f"the plan differs from the run's: not bitwise from step {run.position.step}",
                is_warning=True,
            )
        )
    foreseen = forecast(profile, planned)
    if world.is_main:
        begin_record(request, target, planned, foreseen, dataset, run.position.step)
    for line in mixture_lines(dataset.mixture, horizon.steps, planned.workload.tokens_per_step):
        sitting.observe(Note(line))
    sitting.observe(started_event(target, planned, dataset, run.position.step, horizon))
    setup = TrainSetup(
        run=run,
        profile=profile,
        horizon=horizon,
        directory=target.directory,
        data=dataset.shards,
        tokenizer=dataset.tokenizer,
        mixture=dataset.mixture,
        workload=planned.workload,
        peak_flops=planned.peak_flops,
        stop=sitting.stop,
        observe=sitting.observe,
        used_before_s=used_before_s(target, resumed),
        starting_s=sitting.elapsed_s,
    )
    with Prefetch(run.batches.read) as run.prefetch:
        result = trained_with_energy(Trainer(setup, state))
    if world.is_main:
        result = _beside_forecast(result, target, foreseen)
        result = replace(result, prompt_example=_prompt_example(dataset))
        record_run(
            planned.facts,
            planned.workload,
            run.plan,
            step_s=result.step_s,
            steps=result.trained_steps,
            peak_memory_bytes=result.peak_memory_bytes,
        )
        end_record(target.directory, result)
    return result


def _prompt_example(dataset: Dataset) -> str:
    """Return the beginning of the validation text."""
    tokens = dataset.shards.validation
    return dataset.tokenizer.decode(tokens.read(0, min(64, tokens.num_tokens)).tolist())


def _beside_forecast(result: TrainResult, target: Target, foreseen: Forecast) -> TrainResult:
    """The result with what was said before the run, also where that was in an earlier sitting."""
    said = (target.record or {}).get("forecast") or foreseen.document()
    rate, seconds = ((said.get(name) or {}).get("value") for name in ("tokens_per_s", "seconds"))
    return replace(result, predicted_tokens_per_s=rate, predicted_seconds=seconds)


def _finished(target: Target, resumed: Checkpoint | None) -> TrainResult | None:
    """The result of a run that has nothing left to do."""
    if resumed is None or not resumed.state.finished or has_new_horizon(target):
        return None
    return result_of(target, resumed.state)
