"""Build a run that can step from a profile, a plan and data."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.data.batches.conversations import (
    END,
    ConversationReader,
    PackedConversations,
    pack_conversations,
)
from llmtrain.data.batches.mixture import MixedBatches, MixedSource
from llmtrain.data.batches.packing import PackedReader, Packing, pack
from llmtrain.data.batches.windows import BatchReader, Tokens, WindowReader
from llmtrain.data.chat.marks import Marks
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.errors import LlmtrainError
from llmtrain.model.decoder import Decoder
from llmtrain.model.huggingface import EMBEDDING, HEAD, weight_shapes
from llmtrain.model.lora import adapted_decoder, reset_adapters
from llmtrain.ops.native.library import require_kernels
from llmtrain.ops.precision import WeightCasts, half_dtype
from llmtrain.plan.planner import InferencePlan, Plan
from llmtrain.profile.schema import DataSection, Profile
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.recipe.learning_rate import peak_learning_rates
from llmtrain.train.checkpoint.adapter import Adapter
from llmtrain.train.checkpoint.format import Checkpoint
from llmtrain.train.distributed.world import World, device_of
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.train.loop import Position, ReadWeights, Run
from llmtrain.train.parameter_groups import build_optimizer, load_named_state
from llmtrain.train.schedule import Schedule

AnyPacking = Packing | PackedConversations


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
    stream: TokenStream,
    resumed: Checkpoint | None,
    separator_id: int | None = None,
    packing: AnyPacking | None = None,
    mixture: Sequence[MixedSource] = (),
    initial: ReadWeights | None = None,
    adapter: Adapter | None = None,
) -> Run:
    """Return a run at its first step, or at the checkpoint `resumed`; sets up the device.

    `initial`: reads the weights that the run begins with, unless they are random. `adapter`: what
    is trained where that is not the whole model.

    `separator_id`: the token that documents of the stream begin with. `packing`: how documents
    are packed into windows, unless they are concatenated. `mixture`: the parts of the stream that
    are read by weight, each packed by itself; if empty, the stream is read as a whole.
    """
    device = set_up_device(plan, world)
    if adapter is None:
        model = build_model(profile, resumed, initial).to(device)
    else:
        model = build_adapted_model(profile, adapter, plan, resumed).to(device)
    model.separator_id = masking_separator(profile.data, separator_id)
    model.has_padding = profile.data.pads_windows
    products = torch.bfloat16 if plan.precision.value == "bf16" else torch.float32
    tokens_per_step = profile.train.chosen_tokens_per_step
    continues = profile.model.init_from is not None
    optimizer = build_optimizer(
        model,
        profile.optim,
        "fused",
        products,
        tokens_per_step=tokens_per_step,
        continues=continues,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=plan.grad_scaler.value)
    position, divergence = Position(), DivergenceState()
    if resumed is not None:
        load_named_state(model, optimizer, resumed.optimizer)
        position, divergence = _restore(resumed, scaler), resumed.state.course
    _apply_plan(model, plan, optimizer)
    return Run(
        model=model,
        objective=_distributed(model, world),
        optimizer=optimizer,
        scaler=scaler,
        schedule=schedule_of(profile),
        batches=_reader(profile, stream, separator_id, packing, mixture),
        plan=plan,
        world=world,
        device=device,
        position=position,
        context=profile.model.context,
        peak_learning_rate=peak_learning_rates(
            profile.optim, model.shape.hidden_size, tokens_per_step, continues=continues
        )["matrix"],
        gradient_clip=profile.train.gradient_clip,
        skips_spikes=profile.train.skip_loss_spikes,
        divergence=divergence,
        initial_weights=initial,
        adapter=adapter,
    )


def rewind_run(run: Run, seed: int, checkpoint: Checkpoint | None) -> None:
    """Restore the run to `checkpoint`, or to its beginning if None.

    The horizon stays, and so does what is known of rewinds.
    """
    run.optimizer.state.clear()
    run.scaler = torch.amp.GradScaler(run.device.type, enabled=run.scaler.is_enabled())
    earlier, position = DivergenceState(), Position()
    if checkpoint is not None:
        load_weights(run.model, checkpoint.weights)
    elif run.adapter is not None:
        reset_adapters(run.model, seed)
    else:
        _initialise(run.model, seed, run.initial_weights)
    if checkpoint is not None:
        load_named_state(run.model, run.optimizer, checkpoint.optimizer)
        earlier, position = checkpoint.state.course, _restore(checkpoint, run.scaler)
    if run.model.casts is not None:
        run.model.casts.forget()
    run.divergence = run.divergence.replayed_from(earlier)
    run.position = replace(
        run.position,
        step=position.step,
        tokens=position.tokens,
        windows=run.divergence.cursor_after(position.step, position.windows),
    )


def _apply_plan(model: Decoder, plan: Plan, optimizer: torch.optim.Optimizer) -> None:
    dtype = half_dtype(plan.precision.value)
    casts = WeightCasts(dtype) if plan.keep_weight_casts.value and dtype is not None else None
    if casts is not None:
        forget = casts.forget
        optimizer.register_step_post_hook(lambda *_: forget())
    if "native" in (plan.attention.value, plan.loss.value):
        require_kernels()
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
    )


def _reader(
    profile: Profile,
    stream: TokenStream,
    separator_id: int | None,
    packing: AnyPacking | None,
    mixture: Sequence[MixedSource],
) -> WindowReader:
    context, seed = profile.model.context, profile.train.seed

    def reader_of(tokens: Tokens, seed: int, packing: AnyPacking | None = None) -> WindowReader:
        if profile.data.rows == "chat":
            assert separator_id is not None, "the marks of conversations are known by it"
            return conversation_reader(tokens, separator_id, context, seed, packing)
        if profile.data.packing == "concatenate":
            return BatchReader(tokens, context, seed)
        assert separator_id is not None, "packing needs the token that documents begin with"
        assert not isinstance(packing, PackedConversations), "these are documents"
        packed = packing or pack(tokens, separator_id, context)
        return PackedReader(tokens, packed, separator_id, context, seed)

    if mixture:
        return MixedBatches(stream, mixture, seed, reader_of)
    return reader_of(stream, seed, packing)


def conversation_reader(
    tokens: Tokens,
    separator_id: int,
    context: int,
    seed: int,
    packing: AnyPacking | None = None,
) -> ConversationReader:
    """Return a reader of conversations, packed now unless they are. Raises DataError."""
    marks = Marks.of_separator(separator_id)
    assert not isinstance(packing, Packing), "these are conversations"
    packed = packing or pack_conversations(tokens, marks, context)
    return ConversationReader(tokens, packed, marks, context, seed)


def masking_separator(section: DataSection, separator_id: int | None) -> int | None:
    """Return the target that attention does not look past; None unless documents are masked."""
    if section.rows == "chat":
        return END
    if not section.mask_documents:
        return None
    assert separator_id is not None, "masking needs the token that documents begin with"
    return separator_id


def schedule_of(profile: Profile) -> Schedule:
    """Return the profile's learning-rate schedule."""
    optim = profile.optim
    return Schedule(
        optim.schedule, optim.warmup_steps, optim.decay_fraction, optim.final_learning_rate_fraction
    )


def build_model(
    profile: Profile, resumed: Checkpoint | None, initial: ReadWeights | None = None
) -> Decoder:
    """Return the profile's model on the CPU, with the weights of a checkpoint or the first ones."""
    model = Decoder(shape_of(profile.model))
    if resumed is None:
        _initialise(model, profile.train.seed, initial)
    else:
        load_weights(model, resumed.weights)
    return model


def build_adapted_model(
    profile: Profile, adapter: Adapter, plan: Plan, resumed: Checkpoint | None
) -> Decoder:
    """Return the model that adapters are beside, with those of a checkpoint or new ones.

    Where products are in bf16, the weights that stay as they are are kept in bf16: they would be
    rounded to it in every step. Raises LlmtrainError if the model is gone or has changed.
    """
    shape = shape_of(profile.model)
    dtype = torch.bfloat16 if plan.precision.value == "bf16" else torch.float32
    tensors = adapter.base.tensors(shape.vocab_size)
    model = adapted_decoder(shape, tensors, adapter.lora, dtype)
    if resumed is None:
        reset_adapters(model, profile.train.seed)
    else:
        load_weights(model, resumed.weights)
    return model


def _initialise(model: Decoder, seed: int, initial: ReadWeights | None) -> None:
    """Set the weights of step 0: random ones, or those of another model with rows added."""
    if initial is None:
        model.initialise(seed)
        return
    weights = with_vocabulary(initial(), model.shape.vocab_size)
    _require_finite(weights, "the model to continue from")
    load_weights(model, weights)


def with_vocabulary(weights: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Return the weights with `rows` embedding rows, and as many of the head if it has its own.

    A row that is added is the mean of the others, so that no token starts likelier than an average
    one (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
    """
    extended = dict(weights)
    for name in (EMBEDDING, HEAD):
        matrix = extended.get(name)
        if matrix is not None and len(matrix) < rows:
            mean = matrix.mean(dim=0, keepdim=True)
            extended[name] = torch.cat([matrix, mean.expand(rows - len(matrix), -1)])
    return extended


def trained_model(shape: ModelShape, weights: Mapping[str, Tensor], origin: str) -> Decoder:
    """Return the model of a shape and its weights, on the CPU.

    Raises LlmtrainError if the weights do not match config.json, before memory is allocated for a
    model of that shape, and if one is not a finite number.
    """
    if sum(tensor.numel() for tensor in weights.values()) != shape.parameters or any(
        name not in weights or weights[name].shape != dims for name, dims in weight_shapes(shape)
    ):
        raise LlmtrainError(
            f"the weights do not match config.json, which describes {shape.parameters} parameters"
        )
    _require_finite(weights, origin)
    model = Decoder(shape)
    load_weights(model, weights)
    return model


def _require_finite(weights: Mapping[str, Tensor], origin: str) -> None:
    broken = next((name for name, w in weights.items() if not torch.isfinite(w).all()), None)
    if broken is not None:
        raise LlmtrainError(
            f"the weights of {origin} are of no use: {broken} holds numbers that are not finite",
            hint="name an earlier checkpoint, or train again at a lower learning rate",
        )


def load_weights(model: Decoder, weights: Mapping[str, Tensor]) -> None:
    """Load what is trained of the model. Raises LlmtrainError if it does not fit."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:
        raise LlmtrainError(f"the weights do not fit the model: {error}") from None
    if wrong := [*unexpected, *trained.intersection(missing)]:
        raise LlmtrainError(f"the weights do not fit the model: {min(wrong)}")


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


def _distributed(model: Decoder, world: World) -> nn.Module:
    if world.size == 1:
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)
