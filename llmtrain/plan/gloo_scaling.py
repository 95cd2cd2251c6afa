"""Predict the time of a step of replicas on machines of CPUs that average over gloo. Pure.

    step_s        = micro-batches · micro_s + update_s + exposed_s
    micro_s       measured here, by as many processes at once as a machine has ranks
    all-reduce    = 2 (n - 1) hop_s + 2 (n - 1) / n · bytes · byte_s      over n ranks, in a ring
    hop_s         = a round trip of the network, and what gloo itself takes here
    byte_s        = the slower one of the network and of copying and adding on a machine's cores

gloo's ring passes every byte of a rank from rank to rank, whatever machines they are on, and each
link between machines carries as much as one rank sends. A hop waits until the next rank is ready to
receive: a round trip.

DDP sends gradients in buckets, as the last backward fills them: the first one of 1 MiB, then of 25.
A bucket begins when the one before has ended. What is left after the backward is exposed; and what
the cores do for an exchange beside a backward, which has all of them, is time of that backward.
Two sums of a few numbers end every step.

With `train.sync_every` ranks send in two all-to-alls, once in so many steps, what their weights
moved: each has a part of the sum to make. With `train.sync_delay` that is beside so many steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmtrain.machine.facts import ExchangeTimes
from llmtrain.plan.rounds import Exchange
from llmtrain.plan.scaling import StepPrediction
from llmtrain.plan.tensor_bytes import FP32_BYTES, HALF_BYTES
from llmtrain.plan.workload import Workload

# Of an Ethernet frame with its gap, 1538 bytes, what TCP with timestamps has for data.
ETHERNET_PAYLOAD = 1448 / 1538
_FORWARD = 1 / 3  # of the computation of a micro-batch
_FIRST_BUCKET_BYTES, _BUCKET_BYTES = 1 << 20, 25 << 20  # of DDP
_ROUND_BUCKET_BYTES = 64 << 20  # of fp32, of what weights moved
_SUMS_A_STEP, _SUM_BYTES = 2, 64


@dataclass(frozen=True, slots=True)
class Computation:
    """The measured seconds of a rank's parts of a step."""

    micro_s: float  # a micro-batch, forward and backward
    update_s: float
    head_share: float  # of a micro-batch: embedding, head and loss
    synced_s: float | None = None  # a micro-batch with averaging, where all ranks are on a machine


@dataclass(frozen=True, slots=True)
class GlooNetwork:
    """Ranks on machines, and how fast they exchange."""

    ranks: int
    nodes: int
    local: ExchangeTimes  # between processes of a machine
    timed: int  # how many processes those were
    bytes_per_s: float  # of data, into a machine
    round_trip_s: float  # between machines

    @property
    def hop_s(self) -> float:
        """Return the seconds of the shortest message to the next rank."""
        between_s = self.round_trip_s if self.nodes > 1 else 0.0
        return between_s + self.local.latency_s / (2 * (self.timed - 1))

    @property
    def local_bytes_per_s(self) -> float:
        """Return the bytes that a rank receives in a second from others of its machine."""
        return 2 * _others(self.timed) / self.local.byte_s

    def all_reduce(self) -> Exchange:
        """Return the start and the speed of an all-reduce over all ranks."""
        hops, moved = 2 * (self.ranks - 1), 2 * _others(self.ranks)
        return Exchange(hops * self.hop_s, 1 / (moved * self._byte_s(1.0)))

    def all_to_alls_s(self, size_bytes: float) -> float:
        """Return the seconds in which ranks average a tensor by parts: two all-to-alls."""
        local = self.ranks // self.nodes
        crossing = local * (self.ranks - local) / (self.ranks - 1)  # of what a rank receives
        moved = 2 * _others(self.ranks) * size_bytes
        return 2 * self.hop_s + moved * self._byte_s(crossing)

    def work_s(self, size_bytes: float) -> float:
        """Return the CPU seconds of a rank for an exchange."""
        share = _others(self.ranks) / _others(self.timed)
        return share * self.local.cpu_byte_s * size_bytes

    def _byte_s(self, crossing: float) -> float:
        """Return the seconds of a byte that a rank receives.

        `crossing`: how many come into its machine meanwhile.
        """
        between_s = crossing / self.bytes_per_s if self.nodes > 1 else 0.0
        return max(between_s, 1 / self.local_bytes_per_s)


def _others(ranks: int) -> float:
    """Return the share of a tensor that is the others'."""
    return (ranks - 1) / ranks


def predict_gloo_step(
    workload: Workload, computation: Computation, network: GlooNetwork, micro_batches: float
) -> StepPrediction:
    """Predict a step of replicas, of so many micro-batches on each rank."""
    compute_s = micro_batches * computation.micro_s
    if network.ranks == 1:
        return StepPrediction(compute_s, 0.0, 0.0, computation.update_s, 0.0)
    if workload.sync_every > 1:
        step_s = compute_s + computation.update_s
        parts = _in_rounds(workload, network, step_s)
    else:
        parts = _averaged(workload, computation, network)
    communication_s, exposed_s, received = parts
    return StepPrediction(compute_s, communication_s, exposed_s, computation.update_s, received)


def _averaged(
    workload: Workload, computation: Computation, network: GlooNetwork
) -> tuple[float, float, float]:
    """Return the seconds of communication, those beside nothing, and the bytes of a rank."""
    size, reduce = FP32_BYTES * workload.trained_parameters, network.all_reduce()
    sums_s = _SUMS_A_STEP * reduce.seconds(_SUM_BYTES)
    received = 2 * _others(network.ranks) * size
    if computation.synced_s is not None:
        exposed_s = max(0.0, computation.synced_s - computation.micro_s)
        return reduce.seconds(size) + sums_s, exposed_s + sums_s, received
    backward_s = (1 - _FORWARD) * computation.micro_s
    free_s = total_s = beside_s = 0.0
    for bucket_bytes, ready_s in _buckets(workload, computation.head_share, backward_s):
        if max(free_s, ready_s) < backward_s:
            beside_s += network.work_s(bucket_bytes)
        bucket_s = reduce.seconds(bucket_bytes)
        free_s, total_s = max(free_s, ready_s) + bucket_s, total_s + bucket_s
    exposed_s = max(0.0, free_s - backward_s) + beside_s
    return total_s + sums_s, exposed_s + sums_s, received


def _buckets(
    workload: Workload, head_share: float, backward_s: float
) -> Iterator[tuple[float, float]]:
    """Yield the bytes of each bucket of gradients, and when the backward has filled it."""
    filled, limit, last_s = 0.0, _FIRST_BUCKET_BYTES, 0.0
    for size, last_s in _gradients(workload, head_share, backward_s):
        filled += size
        if filled >= limit:
            yield filled, last_s
            filled, limit = 0.0, _BUCKET_BYTES
    if filled > 0:
        yield filled, last_s


def _gradients(
    workload: Workload, head_share: float, backward_s: float
) -> Iterator[tuple[float, float]]:
    """Yield the bytes of gradients, and when they are known: from the head to the embedding."""
    shape, layers = workload.shape, workload.shape.num_layers
    head_s = head_share * backward_s
    ends = 0.0 if workload.lora is not None else FP32_BYTES * shape.vocab_size * shape.hidden_size
    if not shape.tie_embeddings:
        yield ends, head_s
    both = ends if shape.tie_embeddings else 2 * ends
    of_block = (FP32_BYTES * workload.trained_parameters - both) / max(1, layers)
    for number in range(1, layers + 1):
        yield of_block, head_s + number / layers * (backward_s - head_s)
    yield ends, backward_s


def _in_rounds(
    workload: Workload, network: GlooNetwork, step_s: float
) -> tuple[float, float, float]:
    """Return the same of rounds, for each of their steps."""
    every, width = workload.sync_every, FP32_BYTES
    if workload.sync_precision == "bf16":
        width = HALF_BYTES
    size, most = width * workload.trained_parameters, _ROUND_BUCKET_BYTES * width // FP32_BYTES
    whole, rest = divmod(size, most)
    exchange_s = whole * network.all_to_alls_s(most)
    exchange_s += network.all_to_alls_s(rest) if rest else 0.0
    exposed_s = exchange_s
    if workload.sync_delay:
        beside_s = workload.sync_delay * step_s
        exposed_s = max(0.0, exchange_s - beside_s) + network.work_s(size)
    sums_s = _SUMS_A_STEP * network.all_reduce().seconds(_SUM_BYTES)
    received = 2 * _others(network.ranks) * size
    return (exchange_s + sums_s) / every, (exposed_s + sums_s) / every, received / every
