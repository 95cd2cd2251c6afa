"""Time a training step by several processes at once, each with its share of the cores.

Several processes meet over gloo, as the ranks of a run do. The whole model is trained, by its own
forward and backward in DDP, so that caches, the memory's bandwidth and the exchange that overlaps
with the backward cost what they cost in a run.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.children import WorkerProgram, ask_workers, serve
from llmtrain.choice import MatmulPrecision, OptimizerName
from llmtrain.errors import UsageError
from llmtrain.machine.facts import ProcessTimes
from llmtrain.machine.numa import bind_to_node
from llmtrain.machine.timing import Run
from llmtrain.model.decoder import Decoder
from llmtrain.model.step_timing import Way, trained, updating
from llmtrain.model.timing import multiplied_in
from llmtrain.ops.native.library import require_kernels
from llmtrain.ops.precision import autocast_as
from llmtrain.profile.shape import ModelShape

_ROUNDS = 3
_ROUND_S = 0.3
_MOST_CALLS = 10
_LEAST_S = 1e-6
_TIMEOUT = datetime.timedelta(seconds=120)
_PROGRAM = WorkerProgram(
    "llmtrain.model.process_timing:main",
    (),
    task="timed a step",
    hint="--nproc 1 needs no timing of several",
)


@dataclass(frozen=True, slots=True)
class ProcessTask:
    """The step that one of several processes times, and how the processes find each other."""

    rank: int
    processes: int
    meeting: str  # the file through which they find each other
    shape: ModelShape
    way: Way
    products: MatmulPrecision
    optimizer: OptimizerName
    is_bound: bool = False  # to the cores of a NUMA node


def time_processes(
    processes: int,
    shape: ModelShape,
    way: Way,
    products: MatmulPrecision,
    optimizer: OptimizerName,
    *,
    is_bound: bool = False,
) -> ProcessTimes:
    """Return the times of a step by so many processes of `way.threads` each, started for it.

    `is_bound`: each keeps to the cores of a NUMA node.
    Raises LlmtrainError where one of them fails.
    """
    with tempfile.TemporaryDirectory(prefix="llmtrain-processes-") as directory:
        tasks = [
            ProcessTask(
                rank,
                processes,
                str(Path(directory) / "meeting"),
                shape,
                way,
                products,
                optimizer,
                is_bound,
            )
            for rank in range(processes)
        ]
        adapter = TypeAdapter(ProcessTask)
        requests = ([adapter.dump_json(task)] for task in tasks)
        with closing(ask_workers(_PROGRAM, requests, lambda: None, processes=processes)) as answers:
            found = [TypeAdapter(ProcessTimes).validate_json(answer[0]) for answer in answers]
    return found[0]  # those of the slowest, on which all agree


def main() -> None:
    """Run one of the processes."""
    serve(_answer)


def _answer(request: Iterator[bytes]) -> list[bytes]:
    [content] = request
    task = TypeAdapter(ProcessTask).validate_json(content)
    try:
        with multiplied_in(task.products), _meeting(task):
            times = _timed(task)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["a RuntimeError"])[0]
        raise UsageError(f"several processes cannot train here: {reason}") from error
    return [TypeAdapter(ProcessTimes).dump_json(times)]


class ProcessGroup:
    """A process group of processes that meet at a file."""

    def __init__(self, meeting: str, rank: int, processes: int) -> None:
        dist.init_process_group(
            "gloo",
            init_method=Path(meeting).as_uri(),
            rank=rank,
            world_size=processes,
            timeout=_TIMEOUT,
        )

    def close(self) -> None:
        """End the group."""
        dist.destroy_process_group()


def _meeting(task: ProcessTask) -> AbstractContextManager[object]:
    if task.processes == 1:
        return nullcontext()
    return closing(ProcessGroup(task.meeting, task.rank, task.processes))


def _timed(task: ProcessTask) -> ProcessTimes:
    """Return the times of the slowest process; with the noise of this repetition, 0."""
    way, shape = task.way, task.shape
    torch.set_num_threads(way.threads)
    if task.is_bound:
        bind_to_node(task.rank, task.processes)
    if "native" in (way.attention, way.loss, way.block_kernels):
        require_kernels(way.precision)
    model = Decoder(shape)
    model.initialise(0)  # a loss far above a run's would need passes that a run's does not
    if way.masked:
        model.separator_id = 0
    model.compute_with(
        attention=way.attention,
        loss=way.loss,
        block_kernels=way.block_kernels,
        checkpointing=way.checkpointing,
        casts=way.new_casts(),
    )
    averaged: nn.Module = model
    if task.processes > 1:
        averaged = DistributedDataParallel(
            model, gradient_as_bucket_view=True, broadcast_buffers=False
        )
    tokens = torch.randint(1, shape.vocab_size, (way.micro_batch, shape.context))
    if way.masked:
        tokens[:, shape.context // 2] = 0
    micro, synced = (
        _backward(averaged, way, tokens, is_synced=is_synced) for is_synced in (False, True)
    )
    # First of all: only what is averaged makes the buckets of gradients.
    synced_s = _slowest_s(synced, task.processes)
    micro_s = _slowest_s(micro, task.processes)
    update_s = _slowest_s(_update(model, way, task.optimizer), task.processes)
    return ProcessTimes(micro_s, synced_s, update_s, noise=0.0)


def _backward(objective: nn.Module, way: Way, tokens_bt: Tensor, *, is_synced: bool) -> Run:
    def syncing() -> AbstractContextManager[object]:
        if isinstance(objective, DistributedDataParallel) and not is_synced:
            return objective.no_sync()
        return nullcontext()

    def run() -> None:
        with syncing():
            with autocast_as(way.precision, tokens_bt.device):
                loss: Tensor = objective(tokens_bt, tokens_bt.roll(-1))
            torch.autograd.backward(loss / tokens_bt.numel())

    return run


def _update(model: Decoder, way: Way, optimizer: OptimizerName) -> Run:
    """Return an update of the whole model: of its blocks, and of all else by AdamW."""
    blocks = trained(model.model.layers)
    known = {id(parameter) for parameter in blocks}
    others = [each for each in trained(model) if id(each) not in known]
    updates = updating(blocks, way, optimizer), updating(others, way, "adamw")

    def run() -> None:
        for update in updates:
            update()

    return run


def _slowest_s(run: Run, processes: int) -> float:
    """Return the seconds of a call, of the process that takes longest, in the fastest round."""
    run()  # warms up
    calls = int(max(1.0, min(_MOST_CALLS, _ROUND_S / _largest(_seconds(run), processes))))
    rounds_s = []
    for _ in range(_ROUNDS):
        _largest(0.0, processes)  # so that all begin together
        started_s = perf_counter()
        for _ in range(calls):
            run()
        rounds_s.append(_largest(perf_counter() - started_s, processes) / calls)
    return max(_LEAST_S, min(rounds_s))


def _seconds(run: Run) -> float:
    started_s = perf_counter()
    run()
    return max(_LEAST_S, perf_counter() - started_s)


def _largest(seconds: float, processes: int) -> float:
    """Return the largest over all processes."""
    return seconds if processes == 1 else largest_of_processes(seconds)


def largest_of_processes(seconds: float) -> float:
    """Return the largest of what the processes of the group give."""
    value = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value.item()
