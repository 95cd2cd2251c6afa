"""Forecast a run's length, time, checkpoints and loss; each figure with its origin.

    seconds        = starting + tokens / rate + evaluations · eval.tokens / (3 · rate) + saving
    tokens         = those asked for; under a time limit: rate · (limit - starting - ending)
    bits per byte  = the fit to trainings on Python source in `llmtrain.recipe.model_size`

The rate is that of an earlier run by the same plan on this machine, else computed from the parts of
a step, each timed on this machine (`llmtrain.plan.throughput`), and of several GPUs from the data
sheet of their link (`llmtrain.plan.scaling`). Without measurements there is no
forecast of time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from llmtrain.machine.facts import StepTimes
from llmtrain.plan.planned import Planned
from llmtrain.plan.scaling import exposed_communication_s
from llmtrain.plan.tensor_bytes import checkpoint_bytes_of
from llmtrain.plan.throughput import micro_batch_s, predicted_step_s
from llmtrain.profile.horizon import horizon_of
from llmtrain.profile.schema import Profile
from llmtrain.recipe.model_size import expected_loss

Source = Literal["asked for", "measured", "estimated"]

# Assumed for every machine, not measured; a run counts its own seconds once it has begun.
_STARTING_S = 6.0  # imports and reading the data, of a run that has not begun
_IMPORTING_S = 2.0  # torch's compiler, where that was not timed
_LOADING_S = 1.0  # a block's code from the compiler's cache, where that was not timed
SAVED_BYTES_PER_S = 170e6  # written, hashed, synced and read back
# Depends on the text: Python's library was 17% below the fit, prose far above.
_LOSS_RANGE = (0.8, 1.15)
_FITTED_PARAMETERS, _FITTED_TOKENS = (2e6, 150e6), (5e5, 100e6)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, its range where it is uncertain, and how it is known."""

    value: float
    source: Source
    how: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecast figures; None: unknown."""

    steps: Figure | None
    tokens: Figure | None
    tokens_per_s: Figure | None
    seconds: Figure | None
    checkpoints_bytes: Figure
    val_bpb: Figure | None

    def figures(self) -> dict[str, Figure]:
        """Return the known figures by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: figure for name, figure in named.items() if figure is not None}

    def document(self) -> dict[str, dict[str, Any] | None]:
        """Return the forecast as `--json` and run.yaml hold it."""
        return asdict(self)


def forecast(profile: Profile, planned: Planned, elapsed_s: float | None = None) -> Forecast:
    """Forecast a run of `profile` by this plan, from its first step.

    `elapsed_s`: what it took to come there, with the model built, and torch's compiler loaded where
    it is used; None: the run has not begun.
    """
    rate = _rate(planned)
    starting_s = _STARTING_S if elapsed_s is None else elapsed_s
    if planned.plan.compile.value:
        starting_s += _loading_s(planned) + (_importing_s(planned) if elapsed_s is None else 0.0)
    steps, tokens = _length(profile, planned, rate, starting_s)
    return Forecast(
        steps=steps,
        tokens=tokens,
        tokens_per_s=rate,
        seconds=_seconds(profile, planned, tokens, rate, starting_s),
        checkpoints_bytes=_checkpoints(profile, planned),
        # The fit is of models that begin with random weights.
        val_bpb=None if profile.model.init_from is not None else _loss(planned, tokens),
    )


def _importing_s(planned: Planned) -> float:
    """Return the seconds of importing torch's compiler."""
    block = None if planned.cpu_times is None else planned.cpu_times.block
    return _IMPORTING_S if block is None or block.import_s is None else block.import_s


def _loading_s(planned: Planned) -> float:
    """Return the seconds of loading compiled code, which a cache has once a block was timed."""
    block = None if planned.cpu_times is None else planned.cpu_times.block
    return _LOADING_S if block is None or block.load_s is None else block.load_s


def _rate(planned: Planned) -> Figure | None:
    last_run = planned.last_run
    if last_run is not None and not last_run.is_contended:
        how = f"in a run of {last_run.steps:.0f} steps by this plan on this machine"
        return Figure(last_run.tokens_per_s, "measured", how)
    parts = planned.step_times
    if parts is None:
        return None
    rate = planned.workload.tokens_per_step / _step_s(planned, parts)
    return Figure(rate, "estimated", _how_timed(planned, parts))


def _step_s(planned: Planned, parts: StepTimes) -> float:
    """Return the seconds of a step, with what GPUs only communicate in."""
    plan, workload = planned.plan, planned.workload
    ranks = plan.processes.value
    step_s = predicted_step_s(
        workload.shape,
        parts,
        tokens_per_step=workload.tokens_per_step,
        processes=ranks,
    )
    if plan.device.value != "cuda" or ranks == 1:
        return step_s
    computing_s = micro_batch_s(workload.shape, parts)
    gpu = planned.facts.of_kind("cuda")[0].name
    communicating_s = exposed_communication_s(workload, plan, gpu, computing_s) or 0.0
    shards = workload.shards(plan.sharding.value, ranks)  # each rank updates its share
    saved_s = parts.update.seconds * (1 - 1 / shards)
    return step_s + communicating_s - saved_s


def _how_timed(planned: Planned, parts: StepTimes) -> str:
    times, compiled = planned.cpu_times, planned.plan.compile.value
    is_compiled = compiled if times is None else parts is times.compiled
    how = f"from the parts of {'a compiled' if is_compiled else 'an eager'} step, timed here"
    if compiled and not is_compiled:
        how += "; compiled they are not timed yet"
    return f"{how}; other programs kept it busy" if parts.is_contended else how


def _length(
    profile: Profile, planned: Planned, rate: Figure | None, starting_s: float
) -> tuple[Figure | None, Figure | None]:
    """Return steps and tokens. The length of an epoch is known once the text is tokenized."""
    per_step, horizon = planned.workload.tokens_per_step, horizon_of(profile.train)
    if horizon is None:
        return None, None
    if horizon.steps is not None:
        asked = "train.steps" if profile.train.steps is not None else "train.tokens"
        tokens = Figure(horizon.steps * per_step, "asked for", asked)
        return Figure(horizon.steps, "asked for", asked), tokens
    if horizon.time_s is None or rate is None:
        return None, None
    overhead_s = starting_s + _ending_s(profile, planned, rate, evaluations=1)
    steps = max(0, int((horizon.time_s - overhead_s) * rate.value / per_step))
    return (
        Figure(steps, rate.source, "as many as the time allows"),
        Figure(steps * per_step, rate.source, "as many as the time allows"),
    )


def _seconds(
    profile: Profile,
    planned: Planned,
    tokens: Figure | None,
    rate: Figure | None,
    starting_s: float,
) -> Figure | None:
    if profile.train.time is not None:
        return Figure(profile.train.time, "asked for", "train.time")
    if tokens is None or rate is None:
        return None
    steps = tokens.value / planned.workload.tokens_per_step
    evaluations = max(1, int(steps // profile.eval.every_steps))
    ending_s = _ending_s(profile, planned, rate, evaluations)
    total_s = starting_s + tokens.value / rate.value + ending_s
    return Figure(total_s, rate.source, "the tokens at that rate, with start and evaluations")


def _ending_s(profile: Profile, planned: Planned, rate: Figure, evaluations: int) -> float:
    evaluating_s = evaluations * profile.eval.tokens / (3 * rate.value)
    return evaluating_s + _checkpoint_bytes(planned) / SAVED_BYTES_PER_S


def _checkpoints(profile: Profile, planned: Planned) -> Figure:
    options, each = profile.checkpoint, _checkpoint_bytes(planned)
    count = options.keep_last + options.keep_best + 1
    how = f"{count} checkpoints: those kept, and one being written"
    return Figure(count * each, "estimated", how)


def _checkpoint_bytes(planned: Planned) -> int:
    return checkpoint_bytes_of(planned.workload, planned.plan.processes.value)


def _loss(planned: Planned, tokens: Figure | None) -> Figure | None:
    """Return the expected loss within the range that was fitted; None outside."""
    parameters = planned.workload.shape.parameters
    if tokens is None or not _FITTED_PARAMETERS[0] <= parameters <= _FITTED_PARAMETERS[1]:
        return None
    if not _FITTED_TOKENS[0] <= tokens.value <= _FITTED_TOKENS[1]:
        return None
    fitted = expected_loss(parameters, tokens.value)
    low, high = (share * fitted for share in _LOSS_RANGE)
    how = "fitted to runs on Python source; other text differs"
    return Figure(fitted, "estimated", how, low, high)
