"""Time the parts of a training step on this machine, each as a run computes it, in about a second.

    block    one block, forward and backward, on a micro-batch
    head     embedding, final norm, head and loss, forward and backward, on a micro-batch
    update   clipping, the optimizer, and rounding the weights to half precision, of all parameters

A part that takes long on a CPU is timed on fewer sequences, or on fewer layers, and scaled up: what
it computes is proportional to them. A GPU, whose kernels run after they are called, is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median
from time import perf_counter

import torch
from torch import Tensor, nn

from llmtrain.choice import (
    ActivationCheckpointing,
    Algorithm,
    AttentionKernel,
    BlockKernels,
    DeviceKind,
    LossKernel,
    OptimizerName,
    Precision,
)
from llmtrain.machine.core_wait import ran_share, read_core_times
from llmtrain.machine.facts import PartTime
from llmtrain.machine.gpu import forget_peak_memory
from llmtrain.machine.timing import Run, cpu_seconds
from llmtrain.model.block import Block, compile_block, run_eagerly
from llmtrain.model.decoder import Decoder
from llmtrain.model.lora import add_adapters, freeze_matrices
from llmtrain.model.optimizer import RoleOptimizer
from llmtrain.model.timing import compiling_s, new_block, thread_count, two_documents
from llmtrain.ops.precision import WeightCasts, autocast_as, compute_dtype, half_dtype
from llmtrain.ops.recomputation import checkpointed_block
from llmtrain.ops.rotary import rotary_table
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.profile.shape import ModelShape

_BUDGET_S = 0.4
_LEAST_ROUNDS = 2
_LEAST_CPU_S = 1e-6  # a coarse clock measures a short part as 0
_LONGEST_ROUND_S = 0.8
# Layers are timed together, at least two, and more where a micro-batch has fewer tokens than half
# of these: neither the weights, which each micro-batch reads, nor what their backward needs is to
# stay in a cache, which would be faster than in a whole model.
_LEAST_CHAINED, _CHAINED_TOKENS = 2, 8192
_UPDATED_PARAMETERS = {"cpu": 8_000_000, "cuda": 200_000_000}  # a GPU needs more to be busy


@dataclass(frozen=True, slots=True)
class Way:
    """The decisions of a plan that the time of a part depends on."""

    micro_batch: int  # sequences
    precision: Precision
    attention: AttentionKernel
    checkpointing: ActivationCheckpointing
    keep_casts: bool
    threads: int
    masked: bool = False  # attention stays within documents, of which each sequence has two
    loss: LossKernel = "chunks"
    lora: LoraShape | None = None  # adapters that are trained, beside a model that is not
    device: DeviceKind = "cpu"
    block_kernels: BlockKernels = "torch"
    preferences: bool = False  # the loss is that of pairs of answers
    compiled_block: bool = False  # on a CPU it is timed beside an eager one
    accumulates: bool = False  # gradients are added to those of earlier micro-batches

    @property
    def checkpoints_inside(self) -> bool:
        """Return whether blocks apply activation checkpointing themselves."""
        return self.compiled_block or self.block_kernels == "native"

    def new_casts(self) -> WeightCasts | None:
        """Return a cache of half-precision weights, if the way keeps one."""
        dtype = half_dtype(self.precision)
        return WeightCasts(dtype) if self.keep_casts and dtype is not None else None


def time_chained_block(shape: ModelShape, way: Way) -> PartTime:
    """Return the seconds of one block on a micro-batch, as one of a chain of blocks.

    Raises CompileError where a GPU's kernels cannot be compiled.
    """
    wanted = max(_LEAST_CHAINED, _CHAINED_TOKENS // (way.micro_batch * shape.context))
    count = min(wanted, shape.num_layers)
    generator = torch.Generator(way.device).manual_seed(0)
    size = way.micro_batch, shape.context, shape.hidden_size
    x = torch.randn(size, generator=generator, device=way.device, requires_grad=True)
    with torch.random.fork_rng(devices=()):  # measuring must not change a run's random numbers
        casts = way.new_casts()
        blocks = [_block(shape, way, casts) for _ in range(count)]
    table = rotary_table(shape.head_dim, shape.context, shape.rope_theta)
    cos, sin = (angles.to(way.device) for angles in table)
    run = partial(_train_blocks, way, blocks, casts, (cos, sin), x)
    try:
        if way.device != "cpu":
            compiling_s(partial(run, way.micro_batch))
        return _scaled(_time_sequences(run, way), 1 / count)
    finally:
        for block in blocks:  # what is compiled refers to its block, which so would not be freed
            run_eagerly(block)


def _block(shape: ModelShape, way: Way, casts: WeightCasts | None) -> Block:
    block = new_block(shape, way.attention, way.lora, way.precision).to(way.device)
    block.use_kernels(way.block_kernels, casts)
    if way.checkpoints_inside:
        block.checkpointing = way.checkpointing
    if way.compiled_block:
        compile_block(block)
    return block


def _train_blocks(
    way: Way,
    blocks: Sequence[Block],
    casts: WeightCasts | None,
    rotations: tuple[Tensor, Tensor],
    x_btc: Tensor,
    sequences: int,
) -> None:
    outside: ActivationCheckpointing = "off" if way.checkpoints_inside else way.checkpointing
    if way.block_kernels == "native":  # has the copies
        casts = None
    with autocast_as(way.precision, x_btc.device):
        y = x_btc[:sequences]
        documents = None
        if way.masked:
            size = sequences, x_btc.shape[1]
            documents = two_documents(way.attention, *size, compute_dtype(y), y.device)
        for block in blocks:
            call = block if casts is None else partial(casts.call, block)
            y = checkpointed_block(outside, block, call, y, *rotations, documents)
    torch.autograd.backward(y, y.detach())
    if not way.accumulates:
        for block in blocks:
            block.zero_grad()
    x_btc.grad = None


def time_head(shape: ModelShape, way: Way, *, compiled: bool) -> PartTime:
    """Return the seconds of a model without blocks on a micro-batch.

    `compiled`: the softmax of the loss is. Raises CompileError, also for a GPU's own kernels.
    """
    with torch.random.fork_rng(devices=()):
        model = Decoder(replace(shape, num_layers=0))
        model.initialise(0)  # a loss far above a run's would need passes that a run's does not
        model.to(way.device)
        tokens = torch.randint(shape.vocab_size - 1, (way.micro_batch, shape.context))
    if way.preferences:  # each window has a pair: its answers end with a piece that is nowhere else
        model.separator_id, model.preference_beta = shape.vocab_size - 1, 1.0
        tokens[:, [0, shape.context // 2]] = model.separator_id
    if way.lora is not None:  # the gradient ends at the last norm's output
        freeze_matrices(model, way.precision)
    of_last_norm: BlockKernels = "native" if way.block_kernels == "native" else "torch"
    model.compute_with(
        loss=way.loss, block_kernels=of_last_norm, casts=way.new_casts(), compiled=compiled
    )
    references = (torch.zeros(tokens.shape),) if way.preferences else ()
    run = partial(_train_head, model, way, tokens.to(way.device), references)
    if compiled or way.device != "cpu":
        with thread_count(way.threads):
            compiling_s(partial(run, way.micro_batch))
    return _time_sequences(run, way)


def _train_head(
    model: Decoder,
    way: Way,
    tokens_bt: Tensor,
    references: tuple[Tensor, ...],
    sequences: int,
) -> None:
    some, *rest = (each[:sequences] for each in (tokens_bt, *references))
    with autocast_as(way.precision, some.device):
        loss: Tensor = model(some, some.roll(-1), *rest)
    torch.autograd.backward(loss / some.numel())
    if not way.accumulates:
        model.zero_grad()


def time_update(shape: ModelShape, way: Way, optimizer: OptimizerName) -> PartTime:
    """Return the seconds of what follows the backward, once a step.

    Of the blocks, some are updated and their time is scaled up: as many as have 8M weights, or 200M
    on a GPU.
    """
    most = _UPDATED_PARAMETERS["cpu" if way.device == "cpu" else "cuda"]
    layers = max(1, min(shape.num_layers, most // shape.block_parameters))
    with torch.random.fork_rng(devices=()):
        model = Decoder(replace(shape, num_layers=layers)).to(way.device)
        if way.lora is not None:
            model.requires_grad_(False)
            for block in model.model.blocks():
                add_adapters(block, way.lora)
        for parameter in trained(model):
            parameter.grad = torch.randn_like(parameter) / shape.parameters
    blocks = trained(model.model.layers)
    known = {id(parameter) for parameter in blocks}
    others = [each for each in trained(model) if id(each) not in known]
    of_blocks = _time(updating(blocks, way, optimizer), way)
    if not others:
        return _scaled(of_blocks, shape.num_layers / layers)
    of_others = _time(updating(others, way, "adamw"), way)
    return _sum(_scaled(of_blocks, shape.num_layers / layers), of_others)


def forget_memory(kind: DeviceKind) -> None:
    """Return what timing took of a GPU's memory, and count the run's peak from here on."""
    if kind == "cuda":
        forget_peak_memory()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def updating(parameters: Sequence[nn.Parameter], way: Way, optimizer: OptimizerName) -> Run:
    """Return one update of these parameters."""
    by_algorithm: dict[Algorithm, list[nn.Parameter]] = {}
    for parameter in parameters:
        algorithm: Algorithm = "adamw" if parameter.dim() < 2 else optimizer
        by_algorithm.setdefault(algorithm, []).append(parameter)
    groups = [
        {
            "params": some,
            "algorithm": algorithm,
            "lr": 1e-6,
            "weight_decay": 0.1,
            "momentum": 0.9,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
        }
        for algorithm, some in by_algorithm.items()
    ]
    products = torch.bfloat16 if way.precision == "bf16" else torch.float32
    native = way.block_kernels == "native"  # of the whole step
    stepping = RoleOptimizer(groups, product_dtype=products, native=native)
    stepping.casts = casts = way.new_casts()

    def run() -> None:
        if native:
            stepping.clip_gradients(1.0)
        else:
            nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        stepping.step()
        if casts is not None:
            for parameter in parameters:
                if parameter.dim() == 2:
                    casts.plain(parameter)

    return run


def _time_sequences(run: partial[None], way: Way) -> PartTime:
    """Return the seconds of `run(sequences)` on a micro-batch, or in proportion to fewer.

    A GPU is fast enough for all of them, whose shape is what was compiled.
    """
    if way.device != "cpu":
        return _time(partial(run, way.micro_batch), way)
    with thread_count(way.threads):
        run(1)  # the first call also makes kernels for its shapes
        started_s = perf_counter()
        run(1)
        affordable = int(_LONGEST_ROUND_S / max(1e-9, perf_counter() - started_s))
    sequences = max(1, min(way.micro_batch, affordable))
    timed = _time(partial(run, sequences), way)
    return _scaled(timed, way.micro_batch / sequences)


def _time(run: Run, way: Way) -> PartTime:
    """Return the seconds of a call, as a run makes many."""
    return _time_on_cpu(run, way.threads) if way.device == "cpu" else _time_on_gpu(run, way.device)


def _time_on_gpu(run: Run, kind: DeviceKind) -> PartTime:
    """Return the seconds of a mean call of the fastest round.

    A round is long enough for the GPU to come to the clock that its power allows, and its calls are
    made while earlier ones are computed, as those of a run are.
    """
    wait = torch.get_device_module(kind).synchronize

    def round_s(calls: int) -> float:
        wait()
        started_s = perf_counter()
        for _ in range(calls):
            run()
        wait()
        return max(_LEAST_CPU_S, (perf_counter() - started_s) / calls)

    calls = max(1, int(_BUDGET_S / min(round_s(1) for _ in range(_LEAST_ROUNDS))))
    return PartTime(min(round_s(calls) for _ in range(_LEAST_ROUNDS)))


def _time_on_cpu(run: Run, threads: int) -> PartTime:
    """Return the median seconds of several calls.

    If other programs needed the cores meanwhile, those of the fastest, or of a mean call without
    its waiting, if less.
    """
    with thread_count(threads):
        run()
        walls_s, cpus_s = list[float](), list[float]()
        before = read_core_times()
        while len(walls_s) < _LEAST_ROUNDS or sum(walls_s) < _BUDGET_S:
            started_s, started_cpu_s = perf_counter(), cpu_seconds()
            run()
            cpus_s.append((cpu_seconds() - started_cpu_s) / threads)
            walls_s.append(perf_counter() - started_s)
        share = ran_share(before, read_core_times())
    part = PartTime(median(walls_s), share, max(_LEAST_CPU_S, min(cpus_s)))
    if part.is_contended:
        part = replace(part, seconds=min(*walls_s, fmean(walls_s) * share))
    return part


def _sum(one: PartTime, other: PartTime) -> PartTime:
    return PartTime(
        one.seconds + other.seconds,
        min(one.ran_share, other.ran_share),
        None if one.cpu_s is None or other.cpu_s is None else one.cpu_s + other.cpu_s,
    )


def _scaled(part: PartTime, factor: float) -> PartTime:
    cpu_s = None if part.cpu_s is None else part.cpu_s * factor
    return replace(part, seconds=part.seconds * factor, cpu_s=cpu_s)
