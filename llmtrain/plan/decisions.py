"""Each decision of a plan, as a pure function of facts, options and workload; the memory limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

from llmtrain.choice import (
    ActivationCheckpointing,
    AttentionKernel,
    Backend,
    Choice,
    DeviceKind,
    Precision,
    Sharding,
)
from llmtrain.errors import DoesNotFitError, UsageError
from llmtrain.machine.facts import Accelerator, Facts
from llmtrain.plan.inference_memory import predict_generation
from llmtrain.plan.memory import predict_training
from llmtrain.plan.tensor_bytes import TrainingSetup, frozen_bytes
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import ModelShape
from llmtrain.units import format_bytes, format_count

# Small micro-batches are as fast as large ones on a CPU, on two cores and on sixteen, and much
# leaner; an accelerator wants enough tokens that its products fill it.
_MICRO_BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 65536}
# Beside adapters a micro-batch rounds no weights and adds to no gradients of theirs: on one core
# 512 tokens at once took 0.34 s for 2,048, and 2,048 at once 0.32 s, for two blocks 576 wide.
_ADAPTED_MICRO_BATCH_TOKENS = {"cpu": 512}
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


def may_use_gpu(options: DeviceSection) -> bool:
    """Return True if the options allow a GPU."""
    return not options.force_cpu and options.kind != "cpu"


def choose_device(facts: Facts, options: DeviceSection) -> Choice[DeviceKind]:
    """Choose CUDA, else MPS, else the CPU; a device that is asked for has to exist."""
    if options.force_cpu:
        return Choice("cpu", "device.force_cpu is set")
    if options.kind == "cpu":
        return Choice("cpu", "asked for")
    if options.kind != "auto":
        return _named_accelerator(facts, options.kind)
    for kind in ("cuda", "mps"):
        found = facts.of_kind(kind)
        if found:
            return Choice(kind, _found(found))
    return Choice("cpu", _why_cpu(facts))


def _named_accelerator(facts: Facts, kind: Literal["cuda", "mps"]) -> Choice[DeviceKind]:
    found = facts.of_kind(kind)
    if found:
        return Choice(kind, f"asked for; {_found(found)}")
    failures = [reason for failed, reason in facts.failures if failed == kind]
    because = failures[0] if failures else f"torch {facts.torch_version} finds none"
    if kind == "cuda" and facts.unusable_gpu and not failures:
        because = facts.unusable_gpu
    raise UsageError(f"device {kind} was asked for: {because}", hint="llmtrain device info")


def _found(accelerators: tuple[Accelerator, ...]) -> str:
    first = accelerators[0]
    number = f"{len(accelerators)} × " if len(accelerators) > 1 else ""
    return f"{number}{first.name}, {format_bytes(first.memory_total_bytes)}"


def _why_cpu(facts: Facts) -> str:
    reasons = [f"{kind} failed to initialise: {reason}" for kind, reason in facts.failures]
    if facts.unusable_gpu:
        reasons.append(facts.unusable_gpu)
    return "; ".join(reasons) if reasons else "no accelerator found"


def choose_processes(
    facts: Facts, options: DeviceSection, workload: Workload, kind: DeviceKind
) -> Choice[int]:
    """Choose the number of processes. Raises UsageError where they do not fit the GPUs or steps."""
    if workload.launched_processes is not None:
        choice = Choice(workload.launched_processes, "as launched")
    elif options.processes != "auto":
        choice = Choice(options.processes, "asked for")
    elif kind == "cuda":
        return _gpus_that_divide(len(facts.of_kind("cuda")), workload)
    elif kind == "mps":
        return Choice(1, "one GPU")
    else:
        return Choice(1, "threads share one model; each further process would hold a copy")
    here = workload.launched_local_processes or choice.value
    gpus = len(facts.of_kind("cuda"))
    if kind == "cuda" and here > gpus:
        raise UsageError(
            f"{here} processes need as many GPUs; there are {gpus}", hint=f"--nproc {gpus}"
        )
    if kind == "mps" and choice.value > 1:
        raise UsageError("mps has one GPU and no collective backend", hint="--nproc 1")
    windows_per_process(workload, choice.value)
    return choice


def _gpus_that_divide(gpus: int, workload: Workload) -> Choice[int]:
    windows = workload.tokens_per_step // workload.shape.context
    used = max(n for n in range(1, gpus + 1) if windows % n == 0 or n == 1)
    if used == gpus:
        return Choice(used, "one per GPU")
    return Choice(used, f"of {gpus} GPUs: {windows} windows per step are divisible by {used}")


def windows_per_process(workload: Workload, processes: int) -> int:
    """Return the windows that one process reads in a step. Raises UsageError for a fraction."""
    share = workload.shape.context * processes
    if workload.tokens_per_step % share:
        nearest = max(1, (2 * workload.tokens_per_step + share) // (2 * share)) * share
        raise UsageError(
            f"train.tokens_per_step {workload.tokens_per_step} is not a multiple of context "
            f"{workload.shape.context} × {processes} processes",
            hint=f"--set train.tokens_per_step={nearest}",
        )
    return workload.tokens_per_step // share


def choose_threads(facts: Facts, options: DeviceSection, local_processes: int) -> Choice[int]:
    """Choose the threads of each process: its share of the usable cores."""
    if options.threads != "auto":
        return Choice(options.threads, "asked for")
    if facts.cpu.omp_threads is not None:
        return Choice(facts.cpu.omp_threads, "OMP_NUM_THREADS in the environment")
    usable = facts.cpu.usable_cores
    share = max(1, usable // local_processes)
    reason = f"{usable} usable cores ({_core_limits(facts)})"
    return Choice(
        share, reason + (f" ÷ {local_processes} processes" if local_processes > 1 else "")
    )


def _core_limits(facts: Facts) -> str:
    cpu = facts.cpu
    limits = [f"{cpu.physical_cores or '?'} physical, {cpu.logical_cores} logical"]
    if cpu.affinity_cores is not None and cpu.affinity_cores < cpu.logical_cores:
        limits.append(f"affinity {cpu.affinity_cores}")
    if cpu.quota_cores is not None:
        limits.append(f"quota {cpu.quota_cores:g}")
    return ", ".join(limits)


def choose_sharding(
    options: DeviceSection, workload: Workload, processes: int, fits: Callable[[], object]
) -> Choice[Sharding]:
    """Choose whether each process has all weights and optimizer state, or a part of them.

    `fits` raises DoesNotFitError if a replica does not fit.
    """
    if processes == 1:
        return Choice("replicate", "one process has everything")
    if options.sharding != "auto":
        return Choice(options.sharding, "asked for")
    if workload.sync_every > 1:
        return Choice("replicate", "each process takes steps of its own (train.sync_every)")
    if workload.lora is not None:
        return Choice("replicate", "a model that adapters are beside is not sharded")
    if workload.is_dpo:
        return Choice("replicate", "training on pairs of answers is not sharded")
    try:
        fits()
    except DoesNotFitError as error:
        return Choice("shard", f"a replica does not fit: {error.message}")
    return Choice("replicate", "a replica fits, and needs the least communication")


def refuse_loss_scale_of_local_steps(workload: Workload, precision: Precision) -> None:
    """Raise UsageError where processes that take steps of their own would each scale the loss."""
    if workload.sync_every > 1 and precision == "fp16":
        raise UsageError(
            "train.sync_every: fp16 needs a loss scale that all processes share in every step",
            hint="--set device.precision=fp32, or --set train.sync_every=1",
        )


def choose_activations(
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    kind: DeviceKind,
    precision: Precision,
    compiled: bool,
    processes: int,
    local: int,
    attention: AttentionKernel,
    sharding: Sharding = "replicate",
) -> tuple[Choice[ActivationCheckpointing], Choice[int]]:
    """Choose activation checkpointing and micro-batch: the least recomputation that fits."""
    asked = options.activation_checkpointing
    modes: list[Choice[ActivationCheckpointing]] = list(
        _modes(kind, compiled, workload.micro_batch, beside_adapters=workload.lora is not None)
    )
    if asked != "auto":
        modes = [Choice(asked, "asked for")]
    for mode in modes:
        try:
            setup = TrainingSetup(
                micro_batch=1,
                half_precision=precision != "fp32",
                device_kind=kind,
                checkpointing=mode.value,
                compiled=compiled,
                optimizer=workload.optimizer,
                processes=processes,
                shards=processes if sharding == "shard" else 1,
                masks_pairs=workload.masks_pairs(attention),
                torch_build=workload.torch_build,
                lora=workload.lora,
                frozen_bytes=frozen_bytes(workload, precision),
            )
            chosen = _micro_batch(facts, workload, kind, setup, local)
        except DoesNotFitError:
            if mode is modes[-1]:
                raise
        else:
            return mode, chosen
    raise AssertionError("the last mode is tried")


def _modes(
    kind: DeviceKind,
    compiled: bool,
    micro_batch: int | Literal["auto"],
    *,
    beside_adapters: bool,
) -> Iterator[Choice[ActivationCheckpointing]]:
    at_once = (
        "not even one sequence fits"
        if micro_batch == "auto"
        else f"{micro_batch} sequences do not fit"
    )
    needed = f"without it {at_once}"
    if kind == "cpu" and compiled:
        why = "products and attention are kept; the compiled backward recomputes the rest cheaply"
        yield Choice("selective", why)
    elif kind == "cpu" and beside_adapters:
        yield Choice("selective", "adapters are for little memory; products and attention are kept")
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
    if workload.lora is not None:
        of_use = _ADAPTED_MICRO_BATCH_TOKENS.get(kind, of_use)
    enough = max(1, of_use // workload.shape.context)
    divisors = [n for n in range(1, min(windows, enough) + 1) if windows % n == 0]
    chosen = max(n for n in divisors if predicted(n) <= limit)
    if chosen < divisors[-1]:
        why = "the most that fits"
    else:
        why = "the whole step" if chosen == windows else "divides the step; more is no faster"
    size = f"{format_bytes(predicted(chosen))} of {format_bytes(limit)} predicted ({origin})"
    return Choice(chosen, f"{chosen * workload.shape.context} tokens; {size}; {why}")


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


def choose_backend(facts: Facts, options: DeviceSection, kind: DeviceKind) -> Choice[Backend]:
    """Choose the backend of torch.distributed. Raises UsageError for one that is missing."""
    if options.backend == "nccl" and kind != "cuda":
        raise UsageError("device.backend nccl needs CUDA", hint="--set device.backend=gloo")
    if options.backend == "nccl" and "nccl" not in facts.backends:
        raise UsageError(
            "device.backend nccl: this torch build has none", hint="--set device.backend=gloo"
        )
    if options.backend != "auto":
        return Choice(options.backend, "asked for")
    if kind == "cuda" and "nccl" in facts.backends:
        return Choice("nccl", "GPUs communicate directly")
    if kind == "cuda":
        return Choice("gloo", "this torch build has no nccl")
    return Choice("gloo", "for several processes without CUDA")


def choose_workers(facts: Facts, options: DeviceSection) -> Choice[int]:
    """Choose how many processes tokenize the text."""
    if options.workers != "auto":
        return Choice(options.workers, "asked for")
    return Choice(
        facts.cpu.usable_cores, "one per usable core; tokenization ends before training starts"
    )


def choose_pin_memory(options: DeviceSection, kind: DeviceKind) -> Choice[bool]:
    """Choose whether batches are read into page-locked memory."""
    if options.pin_memory != "auto":
        return Choice(options.pin_memory, "asked for")
    if kind == "cuda":
        return Choice(True, "copies to the GPU overlap with computation")
    return Choice(False, "nothing is copied to another device")
