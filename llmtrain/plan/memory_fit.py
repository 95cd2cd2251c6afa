"""Decide about sharding, recomputation and micro-batch by what fits in memory. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

from llmtrain.choice import (
    ActivationCheckpointing,
    Choice,
    DeviceKind,
    Sharding,
)
from llmtrain.errors import DoesNotFitError, UsageError
from llmtrain.machine.facts import Facts
from llmtrain.plan.decisions import UNITS_OF_SHARES, shares_by_speed, windows_per_process
from llmtrain.plan.inference_memory import predict_generation
from llmtrain.plan.memory import predict_training
from llmtrain.plan.tensor_bytes import TrainingSetup
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import ModelShape
from llmtrain.units import format_bytes, format_count

# Small micro-batches are as fast as large ones on a CPU, on two cores and on sixteen, and much
# leaner; an accelerator wants enough tokens that its products fill it.
_MICRO_BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65536}


# In fine-tuning memory is what is scarce: cpu-small's weights took 1,444 MiB with four sequences of
# 512 tokens at once and 1,022 with one, and 2 to 17% more CPU time with one.
# Beside adapters a micro-batch rounds no weights and adds to no gradients of theirs: on one core
# 512 tokens at once took 0.34 s for 2,048, and 2,048 at once 0.32 s, for two blocks 576 wide.
_FINETUNING_MICRO_BATCH_TOKENS = {"cpu": 512}


_USABLE_MEMORY = {"cpu": 0.85, "mps": 0.8, "cuda": 0.92}


def device_memory_bytes(facts: Facts, kind: DeviceKind) -> int:
    """Return the machine's memory within its limit, or that of the smallest GPU."""
    if kind == "cpu":
        return facts.cpu.usable_memory_bytes
    return min(gpu.memory_total_bytes for gpu in facts.of_kind(kind))


def memory_limit_bytes(facts: Facts, kind: DeviceKind) -> int:
    """Return what one process tree may use of the device's memory; the rest is the system's."""
    return int(device_memory_bytes(facts, kind) * _USABLE_MEMORY[kind])


def memory_limit_origin(facts: Facts, kind: DeviceKind) -> str:
    """Return where the limit comes from: `85% of RLIMIT_DATA's 2 GiB`."""
    whose = facts.cpu.memory_limited_by or "the machine" if kind == "cpu" else "the GPU"
    all_bytes = format_bytes(device_memory_bytes(facts, kind))
    return f"{100 * _USABLE_MEMORY[kind]:.0f}% of {whose}'s {all_bytes}"


def choose_sharding(
    options: DeviceSection, workload: Workload, processes: int, fits: Callable[[Sharding], object]
) -> Choice[Sharding]:
    """Choose whether each process has all weights and optimizer state, or a part of them.

    `fits` raises DoesNotFitError where memory is too short for that. Raises UsageError where
    machines cannot have a replica each, which is asked for.
    """
    if processes == 1:
        return Choice("replicate", "one process has everything")
    if options.sharding == "hybrid" and (why := why_no_replica_a_machine(workload, processes)):
        raise UsageError(f"device.sharding: hybrid: {why}", hint="--set device.sharding=auto")
    if options.sharding != "auto":
        return Choice(options.sharding, "asked for")
    if workload.sync_every > 1:
        return Choice("replicate", "each process takes steps of its own (train.sync_every)")
    if workload.lora is not None:
        return Choice("replicate", "a model that adapters are beside is not sharded")
    if workload.is_dpo:
        return Choice("replicate", "training on pairs of answers is not sharded")
    try:
        fits("replicate")
    except DoesNotFitError as error:
        why = f"a replica does not fit: {error.message}"
        return _choose_shards(workload, processes, fits, why)
    return Choice("replicate", "a replica fits, and needs the least communication")


def _choose_shards(
    workload: Workload, processes: int, fits: Callable[[Sharding], object], why: str
) -> Choice[Sharding]:
    """Choose whether a model of which no process has a replica is sharded within each machine.

    `why` no process has one.
    """
    if processes == (workload.launched_local_processes or processes):
        return Choice("shard", why)
    reason = why_no_replica_a_machine(workload, processes)
    if reason is not None:
        return Choice("shard", f"{why}; over all processes, as {reason}")
    try:
        fits("hybrid")
    except DoesNotFitError as error:
        return Choice("shard", f"{why}; nor spread over a machine's: {error.message}")
    spread = "spread over a machine's processes it does, and only gradients travel between machines"
    return Choice("hybrid", f"{why}; {spread}")


def why_no_replica_a_machine(workload: Workload, processes: int) -> str | None:
    """Return why a model cannot be sharded within each of several machines; None: it can."""
    local = workload.launched_local_processes or processes
    if local == processes:
        return "all processes are on one machine"
    if not workload.has_equal_machines or processes % local:
        return "the machines have different numbers of processes"
    return "each machine has one process" if local == 1 else None


def choose_what_fits(
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    setup: TrainingSetup,
    local: int,
    keeping_gates: Choice[bool],
) -> tuple[Choice[Sharding], Choice[ActivationCheckpointing], Choice[int]]:
    """Choose sharding, activation checkpointing and micro-batch: the least that has to be shared.

    `setup` has the other decisions; `local` processes run on this machine; `keeping_gates`: whether
    native blocks are to keep what fits. Raises DoesNotFitError.
    """

    def activations(
        sharding: Sharding = "replicate",
    ) -> tuple[Choice[ActivationCheckpointing], Choice[int]]:
        """Choose activation checkpointing and micro-batch: the least recomputation that fits."""
        sharded = replace(setup, shards=workload.shards(sharding, setup.processes))
        modes = list(_modes(sharded, workload.micro_batch, keeping_gates))
        if options.activation_checkpointing != "auto":
            modes = [Choice(options.activation_checkpointing, "asked for")]
        for mode in modes:
            checkpointed = replace(sharded, checkpointing=mode.value)
            try:
                return mode, _micro_batch(facts, workload, setup.device_kind, checkpointed, local)
            except DoesNotFitError:
                if mode is modes[-1]:
                    raise
        raise AssertionError("the last mode is tried")

    sharding = choose_sharding(options, workload, setup.processes, activations)
    return sharding, *activations(sharding.value)


def choose_accumulation(workload: Workload, processes: int, micro_batch: int) -> Choice[int]:
    """Choose the micro-batches of a step: those that its windows make."""
    micro_batches = windows_per_process(workload, processes) // micro_batch
    return Choice(
        micro_batches,
        f"{workload.tokens_per_step} tokens per step = {micro_batch} × "
        f"{workload.shape.context} tokens × {micro_batches} × {processes} processes",
    )


def _modes(
    setup: TrainingSetup, micro_batch: int | Literal["auto"], keeping_gates: Choice[bool]
) -> Iterator[Choice[ActivationCheckpointing]]:
    at_once = (
        "not even one sequence fits"
        if micro_batch == "auto"
        else f"{micro_batch} sequences do not fit"
    )
    needed = f"without it {at_once}"
    if setup.device_kind == "cpu" and setup.compiled:
        why = "products and attention are kept; the compiled backward recomputes the rest cheaply"
        yield Choice("selective", why)
    elif setup.device_kind == "cpu" and setup.lora is not None:
        yield Choice("full", "adapters are for little memory; one block at a time is kept")
        return
    elif setup.native_block:
        if keeping_gates.value:
            yield Choice("off", keeping_gates.reason)
        yield Choice("selective", needed if keeping_gates.value else keeping_gates.reason)
    else:
        yield Choice("off", "everything fits")
        yield Choice("selective", needed)
    yield Choice("full", needed)


def _micro_batch(
    facts: Facts, workload: Workload, kind: DeviceKind, setup: TrainingSetup, local: int
) -> Choice[int]:
    """Choose the micro-batch for the other decisions in `setup`."""
    windows = windows_per_process(workload, setup.processes)
    limit = memory_limit_bytes(facts, kind) // (local if kind == "cpu" else 1)
    origin = memory_limit_origin(facts, kind)
    if kind == "cpu" and local > 1:
        origin += f" ÷ {local} processes"

    def predicted(micro_batch: int) -> int:
        at_once = replace(setup, micro_batch=micro_batch, accumulates=micro_batch < windows)
        return predict_training(workload.shape, at_once).total_bytes

    if workload.micro_batch != "auto":
        if windows % workload.micro_batch:
            raise UsageError(
                f"train.micro_batch {workload.micro_batch} does not divide the {windows} windows "
                f"that a process reads per step",
                hint="--set train.micro_batch=auto",
            )
        _refuse_what_does_not_fit(
            predicted(workload.micro_batch), limit, origin, workload, workload.micro_batch
        )
        return Choice(workload.micro_batch, "asked for")
    _refuse_what_does_not_fit(predicted(1), limit, origin, workload, 1)
    of_use = _MICRO_BATCH_TOKENS[kind]
    if workload.lora is not None or workload.has_conversations:
        of_use = _FINETUNING_MICRO_BATCH_TOKENS.get(kind, of_use)
    enough = max(1, of_use // workload.shape.context)
    if shares_by_speed(workload, setup.processes):
        enough = max(1, min(enough, windows // UNITS_OF_SHARES))
    divisors = [n for n in range(1, min(windows, enough) + 1) if windows % n == 0]
    chosen = max(n for n in divisors if predicted(n) <= limit)
    if chosen < divisors[-1]:
        why = "the most that fits"
    else:
        why = "the whole step" if chosen == windows else "divides the step; more is no faster"
        if chosen < windows and shares_by_speed(workload, setup.processes):
            why = "small enough for shares by speed (train.sync_shares)"
    tokens = f"{chosen * workload.shape.context} tokens, within {format_bytes(limit)} ({origin})"
    return Choice(chosen, f"{tokens}; {why}")


def _refuse_what_does_not_fit(
    predicted_bytes: int, limit_bytes: int, origin: str, workload: Workload, micro_batch: int
) -> None:
    if predicted_bytes <= limit_bytes:
        return
    raise DoesNotFitError(
        f"{format_count(workload.shape.parameters)} parameters with micro-batch {micro_batch} × "
        f"{workload.shape.context} tokens need {format_bytes(predicted_bytes)}; "
        f"the limit is {format_bytes(limit_bytes)}, {origin}",
        hint="--set train.micro_batch=auto"
        if workload.micro_batch not in ("auto", 1)
        else "a smaller profile (llmtrain profiles list), or "
        f"--set model.context={max(8, workload.shape.context // 2)}",
    )


def refuse_model_that_does_not_fit(facts: Facts, shape: ModelShape, kind: DeviceKind) -> None:
    """Raise DoesNotFitError if a model of this shape cannot generate on this machine."""
    needed_bytes = predict_generation(
        shape, kind, half_precision=False, torch_build=facts.torch_build
    ).total_bytes
    limit_bytes = memory_limit_bytes(facts, kind)
    if needed_bytes > limit_bytes:
        raise DoesNotFitError(
            f"using {format_count(shape.parameters)} parameters with a context of {shape.context} "
            f"needs {format_bytes(needed_bytes)}; the limit is {format_bytes(limit_bytes)}",
            hint="a machine with more memory",
        )
