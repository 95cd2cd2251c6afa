"""Build a run that can step from a profile, a plan and data."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.errors import LlmtrainError
from llmtrain.machine.numa import bind_to_node
from llmtrain.model.decoder import Decoder
from llmtrain.model.lora import reset_adapters
from llmtrain.model.optimizer import RoleOptimizer
from llmtrain.ops.native.library import require_kernels
from llmtrain.ops.precision import WeightCasts, half_dtype
from llmtrain.plan.planner import InferencePlan, Plan
from llmtrain.profile.schema import Profile
from llmtrain.recipe.learning_rate import peak_learning_rates
from llmtrain.train.checkpoint.adapter import Adapter
from llmtrain.train.checkpoint.format import Checkpoint
from llmtrain.train.distributed.own_state import own_state
from llmtrain.train.distributed.replica import Replica, replica_of
from llmtrain.train.distributed.rounds import OuterStep, Rounds
from llmtrain.train.distributed.sharded_optimizer import ShardedGradScaler
from llmtrain.train.distributed.sharding import ShardedModel
from llmtrain.train.distributed.world import World, device_of
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.train.loop import Position, ReadWeights, Run
from llmtrain.train.model_weights import (
    build_adapted_model,
    build_model,
    build_sharded_model,
    initialise,
    load_weights,
    set_weights,
)
from llmtrain.train.parameter_groups import build_optimizer, load_named_state
from llmtrain.train.readers import TrainTokens, masking_separator, window_reader
from llmtrain.train.schedule import Schedule


def set_up_device(plan: Plan | InferencePlan, world: World) -> torch.device:
    """Set this process's device, threads and matmul precision as planned; return the device."""
    device = device_of(plan.device.value, world)
    torch.set_num_threads(plan.threads.value)
    torch.set_float32_matmul_precision(plan.matmul_precision.value)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def build_run(
    profile: Profile,
    plan: Plan,
    world: World,
    tokens: TrainTokens,
    resumed: Checkpoint | None = None,
    initial: ReadWeights | None = None,
    adapter: Adapter | None = None,
) -> Run:
    """Return a run at its first step, or at the checkpoint `resumed`; sets up the device.

    `initial`: reads the weights that the run begins with, unless they are random. `adapter`: what
    is trained where that is not the whole model.
    """
    device = set_up_device(plan, world)
    if plan.numa_binding.value:  # before there are weights; tokenizing used all cores
        bind_to_node(world.local_rank, world.local_size)
    model, sharded = _model(profile, plan, world, resumed, initial, adapter)
    model.separator_id = masking_separator(profile.data, tokens.separator_id)
    model.has_padding = profile.data.pads_windows
    model.preference_beta = profile.dpo.beta
    optimizer = _optimizer(profile, plan, model, None if sharded is None else sharded.replica)
    scaler = grad_scaler(device, enabled=plan.grad_scaler.value, is_sharded=sharded is not None)
    position, divergence = Position(), DivergenceState()
    rounds = _rounds(profile, plan, model, world, device)
    if resumed is not None:
        _load_optimizer(model, optimizer, rounds, resumed)
        position, divergence = _restore(resumed, scaler), resumed.state.course
    if rounds is not None:
        rounds.begin(position.step, {} if resumed is None else resumed.optimizer)
    _apply_plan(model, plan, optimizer)
    is_by_itself = sharded is not None or rounds is not None
    return Run(
        model=model,
        objective=model if is_by_itself else _distributed(model, world),
        optimizer=optimizer,
        scaler=scaler,
        schedule=schedule_of(profile),
        batches=window_reader(profile, tokens),
        plan=plan,
        world=world,
        device=device,
        position=position,
        context=profile.model.context,
        peak_learning_rate=_peak_learning_rate(profile, model.shape.hidden_size),
        gradient_clip=profile.train.gradient_clip,
        skips_spikes=profile.train.skip_loss_spikes,
        divergence=divergence,
        initial_weights=initial,
        adapter=adapter,
        sharded=sharded,
        rounds=rounds,
    )


def _model(
    profile: Profile,
    plan: Plan,
    world: World,
    resumed: Checkpoint | None,
    initial: ReadWeights | None,
    adapter: Adapter | None,
) -> tuple[Decoder, ShardedModel | None]:
    """Return the model with its weights on its device, whole, adapted or sharded."""
    device, precision = device_of(plan.device.value, world), plan.precision.value
    if plan.sharding.value != "replicate":
        replica = replica_of(world, plan.sharding.value, profile.exchange_timeout_s)
        model, sharded = build_sharded_model(profile, precision, replica, device)
        set_weights(model, profile.train.seed, resumed, initial)
        return model, sharded
    if adapter is not None:
        return build_adapted_model(profile, adapter, precision, resumed).to(device), None
    return build_model(profile, resumed, initial).to(device), None


def _optimizer(
    profile: Profile, plan: Plan, model: Decoder, sharded_over: Replica | None
) -> RoleOptimizer:
    return build_optimizer(
        model,
        profile.optim,
        torch.bfloat16 if plan.precision.value == "bf16" else torch.float32,
        tokens_per_step=profile.train.chosen_tokens_per_step,
        continues=profile.model.init_from is not None,
        is_dpo=profile.data.rows == "preferences",
        sharded_over=sharded_over,
        native=plan.block_kernels.value == "native",
    )


def _peak_learning_rate(profile: Profile, hidden_size: int) -> float:
    """Return the peak of the matrices' learning rate, which progress and logs show."""
    rates = peak_learning_rates(
        profile.optim,
        hidden_size,
        profile.train.chosen_tokens_per_step,
        continues=profile.model.init_from is not None,
        is_dpo=profile.data.rows == "preferences",
    )
    return rates["matrix"]


def grad_scaler(device: torch.device, *, enabled: bool, is_sharded: bool) -> torch.amp.GradScaler:
    """Return a scaler of the loss at its first scale."""
    kind = ShardedGradScaler if is_sharded else torch.amp.GradScaler
    return kind(device.type, enabled=enabled)


def rewind_run(run: Run, seed: int, checkpoint: Checkpoint | None) -> None:
    """Restore the run to `checkpoint`, or to its beginning if None.

    The horizon stays, and so does what is known of rewinds.
    """
    run.optimizer.state.clear()
    run.scaler = grad_scaler(
        run.device, enabled=run.scaler.is_enabled(), is_sharded=run.sharded is not None
    )
    earlier, position = DivergenceState(), Position()
    if checkpoint is not None:
        load_weights(run.model, checkpoint.weights)
    elif run.adapter is not None:
        reset_adapters(run.model, seed)
    else:
        initialise(run.model, seed, run.initial_weights)
    if checkpoint is not None:
        _load_optimizer(run.model, run.optimizer, run.rounds, checkpoint)
        earlier, position = checkpoint.state.course, _restore(checkpoint, run.scaler)
    if run.rounds is not None:
        run.rounds.begin(position.step, {} if checkpoint is None else checkpoint.optimizer)
    if run.model.casts is not None:
        run.model.casts.forget()
    run.divergence = run.divergence.replayed_from(earlier)
    run.position = replace(
        run.position,
        step=position.step,
        tokens=position.tokens,
        windows=run.divergence.cursor_after(position.step, position.windows),
    )


def _apply_plan(model: Decoder, plan: Plan, optimizer: RoleOptimizer) -> None:
    dtype = half_dtype(plan.precision.value)
    casts = WeightCasts(dtype) if plan.keep_weight_casts.value and dtype is not None else None
    optimizer.casts = casts
    if "native" in (plan.attention.value, plan.loss.value, plan.block_kernels.value):
        require_kernels(plan.precision.value)
    model.casts = casts
    compute_as_planned(model, plan)


def compute_as_planned(model: Decoder, plan: Plan) -> None:
    """Compute by the plan's kernels and checkpointing from now on, keeping the weight casts."""
    model.compute_with(
        attention=plan.attention.value,
        loss=plan.loss.value,
        block_kernels=plan.block_kernels.value,
        checkpointing=plan.activation_checkpointing.value,
        casts=model.casts,
        compiled=plan.compile.value,
        sharded=plan.sharding.value != "replicate",
    )


def schedule_of(profile: Profile) -> Schedule:
    """Return the profile's learning-rate schedule."""
    optim = profile.optim
    return Schedule(
        optim.schedule, optim.warmup_steps, optim.decay_fraction, optim.final_learning_rate_fraction
    )


@dataclass(frozen=True, slots=True)
class RandomState:
    """The state of torch's CPU random generator, in base64."""

    text: str

    @classmethod
    def now(cls) -> RandomState:
        """Return the generator's current state."""
        return cls(base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode("ascii"))

    def restore(self) -> None:
        """Set the generator to this state. Raises LlmtrainError if it is none."""
        try:
            raw: Tensor = torch.frombuffer(
                bytearray(base64.b64decode(self.text, validate=True)), dtype=torch.uint8
            )
            torch.set_rng_state(raw)
        except (ValueError, RuntimeError) as error:
            message = f"the checkpoint's random state cannot be restored: {error}"
            raise LlmtrainError(message) from None


def _restore(checkpoint: Checkpoint, scaler: torch.amp.GradScaler) -> Position:
    state = checkpoint.state
    if state.grad_scaler is not None and scaler.is_enabled():
        scaler.load_state_dict(dict(state.grad_scaler))
    RandomState(state.torch_rng).restore()
    return Position(
        state.step, state.tokens, state.windows, state.horizon_steps, state.time_progress
    )


def _rounds(
    profile: Profile, plan: Plan, model: Decoder, world: World, device: torch.device
) -> Rounds | None:
    """Return the rounds of local steps, if ranks are to take some."""
    train, optim = profile.train, profile.optim
    if train.chosen_sync_every == 1:
        return None
    outer = OuterStep(
        every=train.chosen_sync_every,
        learning_rate=optim.chosen_outer_learning_rate,
        momentum=optim.outer_momentum,
        precision=train.sync_precision,
        by_speed=train.sync_shares == "speed",
        delay=train.sync_delay,
        mixing=optim.outer_mixing,
    )
    context = profile.model.context
    windows = train.chosen_tokens_per_step // context
    unit, timeout_s = plan.micro_batch.value, profile.exchange_timeout_s
    return Rounds(model, world, outer, device, context, windows, unit, timeout_s)


def _load_optimizer(
    model: Decoder, optimizer: RoleOptimizer, rounds: Rounds | None, checkpoint: Checkpoint
) -> None:
    """Load this rank's optimizer state. Raises LlmtrainError if it does not fit."""
    saved = checkpoint.optimizer
    if rounds is not None:
        saved = own_state(saved, rounds.world.rank, rounds.world.size)
    load_named_state(model, optimizer, saved)


def _distributed(model: Decoder, world: World) -> nn.Module:
    if world.size == 1:
        return model
    # The only buffers, the angles of positions, are the same on all ranks.
    return DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
