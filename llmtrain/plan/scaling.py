"""Predict the time of a step on many GPUs, from shapes, data sheets and a stated model. Pure.

    step_s        = micro-batches · (compute_s + exposed_s) + once_s + update_s
    compute_s     = FLOPs of a rank's micro-batch / rate
    rate          = peak · utilisation, with what the optimizer computes beside the model's FLOPs
    exposed_s     = what communication takes longer than the computation that it runs beside

Replicas add their gradients once a step, in fp32, beside the last backward, which is two thirds of
the computation; with `train.sync_every` they add what their weights moved once in so many steps,
beside nothing. A sharded model gathers each block's weights in the precision of products, once
for the forward and once for the backward, and scatters their gradients in fp32, in every
micro-batch; embedding and head are gathered before the first block and scattered after it, beside
nothing. Muon's directions travel to their owners and back once a step, beside nothing.

With a sharded replica on each machine (`device.sharding: hybrid`) all that stays within machines.
Between them travel the gradients in fp32, once a step and by each rank its part: those of blocks
beside the last backward, of embedding and head beside nothing.

A collective over n ranks moves (n - 1) / n of its bytes into each rank over the links in a machine,
and into each machine what it does not have over the network, which its ranks share; the slower one
counts. An all-reduce is twice that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from llmtrain.plan.gpu_speeds import speed_of
from llmtrain.plan.planner import Plan
from llmtrain.plan.rounds import Exchange
from llmtrain.plan.tensor_bytes import FP32_BYTES, HALF_BYTES
from llmtrain.plan.workload import Workload
from llmtrain.profile.shape import ModelShape, muon_flops

# Of additional FLOPs: a whole forward, or the parts of it that are quick to recompute.
_RECOMPUTED = {"off": 0.0, "selective": 0.05, "full": 1 / 3}
_FORWARD = 1 / 3  # of the computation of a micro-batch
# Of a link's or a network's data sheet that NCCL's collectives of large tensors come to: assumed.
COLLECTIVE_SHARE = 0.8
_BUCKET_BYTES = 25 << 20  # of DDP's last gradients, which nothing is left to run beside


@dataclass(frozen=True, slots=True)
class Hardware:
    """The speeds that a prediction assumes."""

    peak_flops: float  # of one GPU, dense, in the plan's precision
    utilisation: float  # of that, by a whole step of one GPU
    link_bytes_per_s: float  # into one GPU, from the others of its machine
    network_bytes_per_s: float  # into one machine


@dataclass(frozen=True, slots=True)
class StepPrediction:
    """The time of a step and its parts, in seconds, and the bytes that a rank receives."""

    compute_s: float
    communication_s: float  # whether or not computation runs beside it
    exposed_s: float  # of that, what nothing runs beside
    update_s: float
    received_bytes: float

    @property
    def step_s(self) -> float:
        """The time of a step."""
        return self.compute_s + self.exposed_s + self.update_s


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Ranks on machines, and how long collectives over all of them take."""

    ranks: int
    nodes: int
    hardware: Hardware

    def seconds(self, size_bytes: float) -> float:
        """Return the time in which every rank receives what it lacks of `size_bytes`."""
        inside = size_bytes * (self.ranks - 1) / self.ranks / self.hardware.link_bytes_per_s
        return max(inside, self.between_s(size_bytes))

    def between_s(self, size_bytes: float) -> float:
        """Return the time in which every machine receives what it lacks of `size_bytes`."""
        return size_bytes * (self.nodes - 1) / self.nodes / self.hardware.network_bytes_per_s

    @property
    def machine(self) -> _Cluster:
        """One of its machines."""
        return replace(self, ranks=self.ranks // self.nodes, nodes=1)


def predict_step(
    workload: Workload, plan: Plan, hardware: Hardware, *, nodes: int
) -> StepPrediction:
    """Predict a step of the plan's processes on `nodes` machines.

    The utilisation is that of the whole step on one GPU, the optimizer's products included, which
    do not count among the model's FLOPs.
    """
    ranks = plan.processes.value
    cluster = _Cluster(ranks, nodes, hardware)
    flops = workload.flops_per_token * workload.tokens_per_step / ranks
    updating = float(muon_flops(workload.shape)) if workload.optimizer == "muon" else 0.0
    share = hardware.utilisation * (1 + updating / (ranks * flops))
    rate = hardware.peak_flops * min(1.0, share)
    more = 1.0 + _RECOMPUTED[plan.activation_checkpointing.value]
    compute_s = flops * more / rate
    communication_s, exposed_s, received = _communication(
        workload, plan, cluster, compute_s / plan.accumulation.value
    )
    update_s = updating / workload.shards(plan.sharding.value, ranks) / rate
    return StepPrediction(compute_s, communication_s, exposed_s, update_s, received)


def predict_exchange(plan: Plan, hardware: Hardware, *, nodes: int) -> Exchange:
    """Predict how fast the plan's processes on `nodes` machines add up tensors."""
    cluster = _Cluster(plan.processes.value, nodes, hardware)
    return Exchange(0.0, 1 / (2 * cluster.seconds(1.0)))


def exposed_communication_s(
    workload: Workload, plan: Plan, gpu: str, micro_batch_s: float
) -> float | None:
    """Return the seconds of a step in which the GPUs of one machine only communicate.

    `gpu`: the name of one. `micro_batch_s`: the measured computation of a micro-batch. None where
    the link between such GPUs is unknown, or the ranks are on several machines.
    """
    ranks = plan.processes.value
    local, speed = workload.launched_local_processes, speed_of(gpu)
    if speed is None or (local is not None and local < ranks):
        return None
    link = COLLECTIVE_SHARE * speed.link_bytes_per_s
    cluster = _Cluster(ranks, 1, Hardware(speed.flops, 1.0, link, math.inf))
    return _communication(workload, plan, cluster, micro_batch_s)[1]


def _communication(
    workload: Workload, plan: Plan, cluster: _Cluster, micro_batch_s: float
) -> tuple[float, float, float]:
    """Return the seconds of communication, those beside nothing, and the bytes of a rank."""
    if plan.sharding.value == "replicate":
        return _replicated(workload, plan, cluster, micro_batch_s)
    if plan.sharding.value == "shard":
        return _sharded(workload, plan, cluster, micro_batch_s)
    within = _sharded(workload, plan, cluster.machine, micro_batch_s)
    between = _added_between(workload, cluster, micro_batch_s)
    communication_s, exposed_s, received = map(sum, zip(within, between, strict=True))
    return communication_s, exposed_s, received


def _replicated(
    workload: Workload, plan: Plan, cluster: _Cluster, micro_batch_s: float
) -> tuple[float, float, float]:
    if plan.processes.value == 1:
        return 0.0, 0.0, 0.0
    is_half = workload.sync_every > 1 and workload.sync_precision == "bf16"
    size = (HALF_BYTES if is_half else FP32_BYTES) * workload.trained_parameters
    reduce_s, last_s = 2 * cluster.seconds(size), 2 * cluster.seconds(min(size, _BUCKET_BYTES))
    if workload.sync_every > 1:  # weights, once in so many steps, beside nothing
        rarely = 1 / workload.sync_every
        return reduce_s * rarely, reduce_s * rarely, 2.0 * size * rarely
    backward_s = (1 - _FORWARD) * micro_batch_s
    return reduce_s, last_s + max(0.0, reduce_s - last_s - backward_s), 2.0 * size


def _sharded(
    workload: Workload, plan: Plan, cluster: _Cluster, micro_batch_s: float
) -> tuple[float, float, float]:
    shape, number = workload.shape, plan.accumulation.value
    element = FP32_BYTES if plan.precision.value == "fp32" else HALF_BYTES
    matrices = shape.num_layers * shape.block_matrix_parameters
    ends = FP32_BYTES * shape.embedding_parameters
    gather_s, scatter_s = (cluster.seconds(size * matrices) for size in (element, FP32_BYTES))
    ends_s = cluster.seconds(ends)
    beside_forward_s = max(0.0, gather_s - _FORWARD * micro_batch_s)
    beside_backward_s = max(0.0, gather_s + scatter_s - (1 - _FORWARD) * micro_batch_s)
    muon_s = muon = 0.0
    if workload.optimizer == "muon":
        muon, muon_s = 2.0 * element * matrices, 2 * cluster.seconds(element * matrices)
    communication_s = number * (2 * gather_s + scatter_s + 2 * ends_s) + muon_s
    exposed_s = number * (beside_forward_s + beside_backward_s + 2 * ends_s) + muon_s
    received = number * ((2 * element + FP32_BYTES) * matrices + 2 * ends) + muon
    return communication_s, exposed_s, received


def _added_between(
    workload: Workload, cluster: _Cluster, micro_batch_s: float
) -> tuple[float, float, float]:
    """Return what machines that have a replica each need to add their gradients."""
    ends = FP32_BYTES * workload.shape.embedding_parameters
    blocks = FP32_BYTES * workload.trained_parameters - ends
    blocks_s, ends_s = 2 * cluster.between_s(blocks), 2 * cluster.between_s(ends)
    exposed_s = max(0.0, blocks_s - (1 - _FORWARD) * micro_batch_s) + ends_s
    return blocks_s + ends_s, exposed_s, 2.0 * (blocks + ends) / cluster.machine.ranks


def scaled_shape(shape: ModelShape, hidden_size: int) -> ModelShape:
    """Return the shape of another width, whose depth and inner width are in the same ratio.

    Heads keep their size, and keys and values their share of heads.
    """
    ratio = hidden_size / shape.hidden_size
    heads = max(1, round(shape.num_heads * ratio))
    shared = shape.num_heads // shape.num_kv_heads
    kv_heads = max(1, heads // shared)
    return replace(
        shape,
        hidden_size=hidden_size,
        intermediate_size=max(64, round(shape.intermediate_size * ratio / 64) * 64),
        num_layers=max(1, round(shape.num_layers * ratio)),
        num_heads=kv_heads * shared,
        num_kv_heads=kv_heads,
    )
