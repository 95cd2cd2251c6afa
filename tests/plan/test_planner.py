"""Plans for machines that one does not have: exact decisions, each with a reason."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.errors import DoesNotFitError, UsageError
from llmtrain.machine.facts import (
    Accelerator,
    AcceleratorKind,
    AttentionTimes,
    BlockTimes,
    CpuFacts,
    CpuTimes,
    Facts,
    MatmulTimes,
)
from llmtrain.plan.decisions import remark_on_shares
from llmtrain.plan.memory_fit import memory_limit_bytes
from llmtrain.plan.planner import (
    Plan,
    make_inference_plan,
    make_plan,
    plan_from_document,
    predict,
)
from llmtrain.plan.workload import Workload
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import DeviceSection, ModelSection, Profile
from llmtrain.profile.shape import shape_of

GIB = 2**30
BF16_PAYS = CpuTimes(
    MatmulTimes(fp32_s=0.040, medium_s=0.040, bf16_s=0.010, flops=1e10),
    AttentionTimes(sdpa_s=0.100, blocks_s=0.030),
    BlockTimes(eager_s=0.400, compiled_s=0.300, compile_s=12.0),
)
BF16_IS_EMULATED = CpuTimes(
    MatmulTimes(fp32_s=0.040, medium_s=0.041, bf16_s=0.200, flops=1e10),
    AttentionTimes(sdpa_s=0.100, blocks_s=0.095),
    BlockTimes(eager_s=0.400, compiled_s=0.600, compile_s=12.0),
)


def cpu(cores: int, gib: float, **more: Any) -> CpuFacts:
    known: dict[str, Any] = {
        "model": "invented",
        "architecture": "x86_64",
        "physical_cores": cores,
        "logical_cores": 2 * cores,
        "sockets": 1,
        "affinity_cores": 2 * cores,
        "quota_cores": None,
        "isa": ("avx2",),
        "memory_total_bytes": int(gib * GIB),
        "memory_limit_bytes": None,
    }
    return CpuFacts(**(known | more))


def gpus(
    number: int, name: str, gib: int, *, bf16: bool = True, kind: AcceleratorKind = "cuda"
) -> tuple[Accelerator, ...]:
    return tuple(Accelerator(kind, i, name, gib * GIB, bf16) for i in range(number))


def machine(processor: CpuFacts, **more: Any) -> Facts:
    known: dict[str, Any] = {
        "system": "Linux",
        "python_version": "3.12.0",
        "torch_version": "2.13.0",
        "torch_build": "cpu",
        "cpu": processor,
        "cxx_compiler": "/usr/bin/g++",
        "backends": ("gloo",),
    }
    return Facts(**(known | more))


def cuda_machine(*accelerators: Accelerator) -> Facts:
    return machine(
        cpu(32, 256),
        torch_build="cu130",
        accelerators=accelerators,
        has_triton=True,
        backends=("gloo", "nccl"),
    )


H100 = cuda_machine(*gpus(1, "H100", 80))
EIGHT_H100 = cuda_machine(*gpus(8, "H100", 80))
T4 = cuda_machine(*gpus(1, "T4", 15, bf16=False))
MAC = machine(
    cpu(8, 16, architecture="arm64", logical_cores=8, affinity_cores=None),
    system="Darwin",
    accelerators=gpus(1, "Apple M2", 12, kind="mps"),
)
XEON = machine(cpu(64, 512, sockets=2, isa=("avx2", "avx512f", "amx_bf16")))
LAPTOP = machine(cpu(4, 8))
CONTAINER = machine(cpu(16, 64, quota_cores=1.5, memory_limit_bytes=2 * GIB))
WINDOWS = machine(
    cpu(6, 16, architecture="AMD64", affinity_cores=None), system="Windows", cxx_compiler=None
)
MACHINES = (H100, EIGHT_H100, T4, MAC, XEON, LAPTOP, CONTAINER, WINDOWS)


def profile_of(name: str, *assignments: str) -> Profile:
    length = [] if name.startswith("gpu") else ["train.tokens_per_step=32768"]
    return load_profile(name, environment={}, assignments=[*length, *assignments]).profile


def workload_of(profile: Profile) -> Workload:
    train = profile.train
    return Workload(shape_of(profile.model), train.chosen_tokens_per_step, train.micro_batch)


def plan(
    facts: Facts, name: str, *assignments: str, times: CpuTimes | None = None, **launched: Any
) -> Plan:
    profile = profile_of(name, *assignments)
    return make_plan(facts, profile.device, replace(workload_of(profile), **launched), times)


def values(made: Plan) -> dict[str, Any]:
    return {name: choice.value for name, choice in made.choices()}


ON_A_CPU = {
    "device": "cpu",
    "precision": "fp32",
    "matmul_precision": "highest",
    "processes": 1,
    "sharding": "replicate",
    "sync_every": 1,
    "attention": "sdpa",
    "loss": "chunks",
    "block_kernels": "torch",
    "compile": False,
    "activation_checkpointing": "off",
    "keep_weight_casts": False,
    "backend": "gloo",
    "grad_scaler": False,
    "pin_memory": False,
    "numa_binding": False,
}
ON_CUDA = ON_A_CPU | {
    "device": "cuda",
    "precision": "bf16",
    "matmul_precision": "high",
    "loss": "triton",
    "block_kernels": "triton",
    "compile": True,
    "keep_weight_casts": True,
    "backend": "nccl",
    "workers": 32,
    "pin_memory": True,
}


@pytest.mark.parametrize(
    ("facts", "name", "times", "expected"),
    [
        (H100, "gpu-small", None, ON_CUDA | {"threads": 32}),
        (
            EIGHT_H100,
            "gpu-small",
            None,
            ON_CUDA | {"processes": 8, "threads": 4, "keep_weight_casts": False},
        ),
        (
            T4,
            "gpu-small",
            None,
            ON_CUDA | {"threads": 32, "precision": "fp16", "grad_scaler": True, "loss": "chunks"},
        ),
        (MAC, "mps-small", None, ON_A_CPU | {"device": "mps", "threads": 8, "workers": 8}),
        (
            XEON,
            "cpu-medium",
            BF16_PAYS,
            ON_A_CPU
            | {
                "precision": "bf16",
                "attention": "blocks",
                "loss": "chunks",
                "compile": True,
                "activation_checkpointing": "selective",
                "keep_weight_casts": True,
                "threads": 64,
                "workers": 64,
            },
        ),
        (LAPTOP, "cpu-medium", BF16_IS_EMULATED, ON_A_CPU | {"threads": 4, "workers": 4}),
        (CONTAINER, "cpu-small", None, ON_A_CPU | {"threads": 1, "workers": 1}),
        (WINDOWS, "cpu-tiny", None, ON_A_CPU | {"threads": 6, "workers": 6}),
    ],
    ids=["h100", "8xh100", "t4", "mac", "xeon", "laptop", "container", "windows"],
)
def test_the_plan_of_a_machine(
    facts: Facts, name: str, times: CpuTimes | None, expected: dict[str, Any]
) -> None:
    made, profile = plan(facts, name, times=times), profile_of(name)
    found = values(made)
    micro_batch, accumulation = found.pop("micro_batch"), found.pop("accumulation")
    assert found == expected
    assert micro_batch == largest_of_use(facts, profile, made)
    step = micro_batch * accumulation * made.processes.value * profile.model.context
    assert step == profile.train.chosen_tokens_per_step
    assert all(choice.reason.strip() for _, choice in made.choices())


def largest_of_use(facts: Facts, profile: Profile, made: Plan) -> int:
    """The largest divisor of a process's step that fits and is not beyond what helps, by trial."""
    kind = made.device.value
    windows = profile.train.chosen_tokens_per_step // profile.model.context // made.processes.value
    useful = {"cpu": 4096, "mps": 8192, "cuda": 65536}[kind] // profile.model.context
    limit_bytes = memory_limit_bytes(facts, kind)

    def fits(size: int) -> bool:
        trial = replace(made, micro_batch=replace(made.micro_batch, value=size))
        return predict(workload_of(profile), trial).total_bytes <= limit_bytes

    return max(n for n in range(1, useful + 1) if windows % n == 0 and fits(n))


def test_micro_batches_where_memory_is_no_limit() -> None:
    shared = plan(H100, "gpu-small"), plan(EIGHT_H100, "gpu-small"), plan(XEON, "cpu-medium")
    sizes = [(made.micro_batch.value, made.accumulation.value) for made in shared]
    assert sizes == [(64, 8), (64, 1), (4, 8)]


def test_micro_batches_where_memory_is_the_limit() -> None:
    for facts, name in ((T4, "gpu-small"), (CONTAINER, "cpu-small")):
        made, profile = plan(facts, name), profile_of(name)
        roomy = 65536 if made.device.value == "cuda" else 4096
        assert made.micro_batch.value < roomy // profile.model.context
        assert "the most that fits" in made.micro_batch.reason


def test_what_local_steps_hold_leaves_room_for_fewer_sequences() -> None:
    options, workload = profile_of("cpu-small").device, workload_of(profile_of("cpu-small"))
    local = replace(workload, sync_every=4)
    roomy = machine(cpu(16, 64))
    needed_bytes = predict(local, make_plan(roomy, options, local)).total_bytes
    tight = machine(cpu(16, 64, memory_limit_bytes=int(needed_bytes / 0.85) - 1))

    made, of_all = make_plan(tight, options, local), make_plan(tight, options, workload)

    assert made.micro_batch.value < of_all.micro_batch.value
    assert predict(local, made).total_bytes <= memory_limit_bytes(tight, "cpu")


@pytest.mark.parametrize(("windows", "units"), [(2, 2), (12, 12), (64, 8), (1024, 8)])
def test_shares_by_speed_have_micro_batches_to_choose_from(windows: int, units: int) -> None:
    workload = Workload(SMALL, 2 * windows * SMALL.context)
    rounds = replace(workload, sync_every=30)
    by_speed = replace(rounds, sync_shares="speed")
    options = DeviceSection(processes=2)
    equal, found, alone = (
        make_plan(XEON, options, rounds),
        make_plan(XEON, options, by_speed),
        make_plan(XEON, options, replace(by_speed, sync_every=1)),
    )
    assert found.accumulation.value == units
    assert equal.micro_batch.value == min(windows, 128)
    assert alone.micro_batch == make_plan(XEON, options, workload).micro_batch


def test_shares_by_speed_without_effect_are_named_with_what_to_set() -> None:
    rounds = Workload(SMALL, 64 * SMALL.context, 32, sync_every=30, sync_shares="speed")
    remark = remark_on_shares(rounds, 2, 1)
    assert remark is not None
    assert remark.endswith("--set train.micro_batch=auto")
    short = remark_on_shares(replace(rounds, tokens_per_step=2 * SMALL.context), 2, 1)
    assert short is not None
    assert short.endswith(f"--set train.tokens_per_step={16 * SMALL.context}")
    assert remark_on_shares(rounds, 2, 2) is None
    assert remark_on_shares(rounds, 1, 1) is None
    assert remark_on_shares(replace(rounds, sync_shares="equal"), 2, 1) is None


def test_reasons_hold_the_figures_they_rest_on() -> None:
    assert plan(EIGHT_H100, "gpu-small").device.reason == "8 × H100, 80 GiB"
    xeon = plan(XEON, "cpu-medium", times=BF16_PAYS)
    assert "bf16 10.0 ms, fp32 by bf16 passes 40.0 ms" in xeon.precision.reason
    laptop = plan(LAPTOP, "cpu-medium", times=BF16_IS_EMULATED)
    assert "bf16 200.0 ms" in laptop.precision.reason
    assert "quota 1.5" in plan(CONTAINER, "cpu-small").threads.reason
    assert "1.7 GiB" in plan(CONTAINER, "cpu-small").micro_batch.reason


def test_gpus_that_cannot_share_a_step_evenly_stay_idle() -> None:
    made = plan(EIGHT_H100, "gpu-small", "train.tokens_per_step=12288")
    assert (made.processes.value, made.micro_batch.value, made.accumulation.value) == (6, 2, 1)
    assert "12 windows per step are divisible by 6" in made.processes.reason
    alone = plan(EIGHT_H100, "gpu-small", "train.tokens_per_step=11264")
    assert (alone.processes.value, alone.micro_batch.value) == (1, 11)


def test_a_container_too_small_for_a_model_says_so() -> None:
    with pytest.raises(DoesNotFitError, match=r"124M parameters .*the limit is 1\.7 GiB") as error:
        plan(CONTAINER, "gpu-small")
    assert error.value.exit_code == 3
    assert error.value.hint is not None
    with pytest.raises(DoesNotFitError, match="micro-batch 32 "):
        plan(CONTAINER, "cpu-small", "train.micro_batch=32")


def test_a_smaller_limit_means_a_smaller_micro_batch_of_the_same_step() -> None:
    sizes = []
    for gib in (1.6, 2, 3, 64):
        small = replace(CONTAINER, cpu=replace(CONTAINER.cpu, memory_limit_bytes=int(gib * GIB)))
        made = plan(small, "cpu-small")
        assert made.micro_batch.value * made.accumulation.value == 64
        sizes.append(made.micro_batch.value)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_a_wish_is_granted_and_said_to_be_one() -> None:
    made = plan(
        XEON,
        "cpu-medium",
        "device={precision: fp32, threads: 3, attention: sdpa, compile: true, workers: 2, "
        "activation_checkpointing: full, processes: 2, pin_memory: true, backend: gloo}",
        "train.micro_batch=2",
        times=BF16_PAYS,
    )
    wished = values(made)
    assert (wished["precision"], wished["threads"], wished["compile"]) == ("fp32", 3, True)
    assert (wished["attention"], wished["activation_checkpointing"]) == ("sdpa", "full")
    assert (wished["workers"], wished["processes"], wished["pin_memory"]) == (2, 2, True)
    assert (wished["micro_batch"], wished["accumulation"]) == (2, 8)
    asked = (
        *("precision", "threads", "attention", "compile", "activation_checkpointing", "workers"),
        *("processes", "pin_memory", "backend", "micro_batch"),
    )
    assert {getattr(made, name).reason for name in asked} == {"asked for"}


def test_processes_that_were_launched_are_those_of_the_plan() -> None:
    made = plan(XEON, "cpu-medium", launched_processes=8, launched_local_processes=4)
    assert (made.processes.value, made.threads.value) == (8, 16)
    assert made.micro_batch.value * made.accumulation.value * 8 * 1024 == 32768


def test_local_processes_share_the_memory_of_a_cpu() -> None:
    alone = plan(LAPTOP, "cpu-small")
    four: dict[str, Any] = {"launched_processes": 4, "launched_local_processes": 4}
    assert plan(LAPTOP, "cpu-small", **four).micro_batch.value < alone.micro_batch.value
    elsewhere: dict[str, Any] = {"launched_processes": 4, "launched_local_processes": 1}
    assert plan(LAPTOP, "cpu-small", **elsewhere).micro_batch.value == alone.micro_batch.value
    with pytest.raises(DoesNotFitError):
        plan(LAPTOP, "cpu-medium", "device.sharding=replicate", **four)


def test_what_does_not_fit_as_a_replica_is_sharded() -> None:
    four: dict[str, Any] = {"launched_processes": 4, "launched_local_processes": 4}
    made = plan(LAPTOP, "cpu-medium", **four)
    assert made.sharding.value == "shard"
    assert "a replica does not fit" in made.sharding.reason
    assert made.keep_weight_casts.value is False
    assert plan(LAPTOP, "cpu-small", **four).sharding.value == "replicate"
    assert plan(LAPTOP, "cpu-small", "device.sharding=shard").sharding.value == "replicate"
    asked = plan(LAPTOP, "cpu-small", "device.sharding=shard", **four)
    assert (asked.sharding.value, asked.sharding.reason) == ("shard", "asked for")


TWO_MACHINES: dict[str, Any] = {"launched_processes": 16, "launched_local_processes": 8}


def shared(context: int = 4096, *assignments: str, **launched: Any) -> Plan:
    """A plan for two machines of eight GPUs of 24 GiB, of which a replica needs several."""
    facts = cuda_machine(*gpus(8, "A10", 24))
    asked = (f"model.context={context}", *assignments)
    return plan(facts, "gpu-large", *asked, **(TWO_MACHINES | launched))


def test_a_machine_that_has_room_for_a_replica_shards_it_alone() -> None:
    made = shared()
    assert made.sharding.value == "hybrid"
    assert "a replica does not fit" in made.sharding.reason
    assert "only gradients travel between machines" in made.sharding.reason


def test_what_a_machine_has_no_room_for_is_sharded_over_all() -> None:
    made = shared(2048, "model.hidden_size=6144", "model.intermediate_size=18432")
    assert made.sharding.value == "shard"
    assert "nor spread over a machine's" in made.sharding.reason


@pytest.mark.parametrize(
    ("launched", "why"),
    [
        ({"launched_local_processes": 16}, "all processes are on one machine"),
        ({"has_equal_machines": False}, "the machines have different numbers of processes"),
        ({"launched_local_processes": 6}, "the machines have different numbers of processes"),
        ({"launched_local_processes": 1}, "each machine has one process"),
    ],
)
def test_a_replica_on_each_machine_needs_several_equal_machines(
    launched: dict[str, Any], why: str
) -> None:
    facts = cuda_machine(*gpus(16, "A10", 24))
    with pytest.raises(UsageError, match=why) as raised:
        plan(facts, "gpu-large", "device.sharding=hybrid", **(TWO_MACHINES | launched))
    assert raised.value.hint == "--set device.sharding=auto"
    instead = plan(facts, "gpu-large", **(TWO_MACHINES | launched))
    assert instead.sharding.value == "shard"
    assert (why in instead.sharding.reason) == (launched != {"launched_local_processes": 16})


def test_memory_is_that_of_a_model_sharded_over_a_machines_processes() -> None:
    workload = replace(workload_of(profile_of("gpu-large")), **TWO_MACHINES)
    made = shared(1024, "device.sharding=hybrid", "train.micro_batch=1")
    eight = replace(workload, launched_processes=8, launched_local_processes=8)
    here = plan(
        cuda_machine(*gpus(8, "A10", 24)),
        *("gpu-large", "model.context=1024", "device.sharding=shard", "train.micro_batch=1"),
        launched_processes=8,
        launched_local_processes=8,
    )
    alike = replace(here, activation_checkpointing=made.activation_checkpointing)
    assert predict(workload, made) == predict(eight, alike)


SMALL = shape_of(ModelSection(hidden_size=64, num_heads=2, num_layers=2, context=32))


@given(
    facts=st.sampled_from(MACHINES),
    context=st.integers(8, 3000),
    windows=st.integers(1, 4096),
    processes=st.none() | st.integers(1, 8),
    micro_batch=st.just("auto") | st.integers(1, 64),
)
def test_the_step_is_always_the_one_that_was_asked_for(
    facts: Facts,
    context: int,
    windows: int,
    processes: int | None,
    micro_batch: int | Literal["auto"],
) -> None:
    workload = Workload(replace(SMALL, context=context), windows * context, micro_batch)
    options = DeviceSection(processes=processes if processes is not None else "auto")
    try:
        made = make_plan(facts, options, workload)
    except DoesNotFitError:
        return
    except UsageError:
        if processes is None and micro_batch == "auto":
            raise  # any whole number of windows can be planned where nothing was asked for
        return
    product = made.micro_batch.value * made.accumulation.value * made.processes.value * context
    assert product == windows * context
    assert processes in (None, made.processes.value)
    assert all(choice.reason for _, choice in made.choices())
    assert plan_from_document(json.loads(json.dumps(made.document()))) == made


@given(
    facts=st.sampled_from((LAPTOP, XEON, EIGHT_H100)),
    context=st.integers(8, 3000),
    tokens=st.integers(1, 10**7) | st.integers(1, 2**63 - 1),
    processes=st.none() | st.integers(1, 8),
)
def test_the_hint_for_a_step_that_does_not_divide_works(
    facts: Facts, context: int, tokens: int, processes: int | None
) -> None:
    options = DeviceSection(processes=processes if processes is not None else "auto")
    workload = Workload(replace(SMALL, context=context), tokens)
    try:
        make_plan(facts, options, workload)
    except UsageError as error:
        refused = error
    else:
        return
    assert f"train.tokens_per_step {tokens}" in refused.message
    proposed = int(str(refused.hint).removeprefix("--set train.tokens_per_step="))
    assert abs(proposed - tokens) <= context * (processes or 8)
    made = make_plan(facts, options, replace(workload, tokens_per_step=proposed))
    share = made.micro_batch.value * made.accumulation.value * made.processes.value
    assert share * context == proposed


def test_masked_documents_are_planned_for() -> None:
    """A mask of all pairs takes memory, which a micro-batch then has less of.

    Blocks take none, neither a CPU's nor a compiled GPU's.
    """
    profile = profile_of("cpu-tiny", "model.context=16384", "train.tokens_per_step=1048576")
    plain = workload_of(profile)
    masked = replace(plain, mask_documents=True)
    small = replace(CONTAINER, cpu=replace(CONTAINER.cpu, memory_limit_bytes=6 * GIB))
    gpu = replace(T4, accelerators=gpus(1, "Tesla T4", 4))
    for facts, options in ((small, {"kind": "cpu"}), (gpu, {"compile": False})):
        how = DeviceSection.model_validate(options)
        found = [make_plan(facts, how, workload) for workload in (plain, masked)]
        sizes = [predict(masked, made).total_bytes for made in found]
        assert sizes[0] - predict(plain, found[0]).total_bytes >= 16384**2 * 2
        assert found[0].micro_batch.value >= found[1].micro_batch.value
        assert found[1].attention.value == "sdpa"
    assert "mask of all pairs" in found[1].attention.reason
    blocks = DeviceSection(kind="cpu", attention="blocks")
    assert make_plan(small, blocks, masked) == make_plan(small, blocks, plain)
    compiled = [make_plan(gpu, DeviceSection(), workload) for workload in (plain, masked)]
    assert compiled[1].attention.value == "flex"
    assert compiled[0].micro_batch == compiled[1].micro_batch


@pytest.mark.parametrize("facts", MACHINES)
def test_a_plan_is_read_back_as_it_was_written(facts: Facts) -> None:
    made = plan(facts, "cpu-tiny", times=BF16_PAYS if facts is XEON else None)
    document = json.loads(json.dumps(made.document()))
    assert plan_from_document(document) == made
    assert set(document) == {field.name for field in fields(Plan)}
    assert all(set(choice) == {"value", "reason"} for choice in document.values())
    del document["threads"]
    with pytest.raises(KeyError):
        plan_from_document(document)


def test_a_plan_of_an_earlier_llmtrain_is_read() -> None:
    """0.2.0 wrote two more decisions, which could not come out differently."""
    made = plan(XEON, "cpu-tiny")
    document = made.document()
    document["optimizer_kernel"] = {"value": "fused", "reason": "one pass"}
    document["loader_processes"] = {"value": 0, "reason": "memory-mapped"}
    assert plan_from_document(document) == made
    recorded = made.numerics() | {"optimizer_kernel": "fused"}
    assert made.has_numerics(recorded)
    assert not made.has_numerics(recorded | {"threads": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 10**6),
        ("processes", 5000),
        ("workers", -1),
        ("micro_batch", 2**40),
        ("device", "tpu"),
        ("precision", None),
        ("attention", ["sdpa"]),
        ("compile", "maybe"),
        ("accumulation", "many"),
    ],
)
def test_a_plan_that_nobody_made_is_a_value_error(name: str, value: object) -> None:
    document = plan(LAPTOP, "cpu-tiny").document()
    document[name]["value"] = value
    with pytest.raises(ValueError, match=name):
        plan_from_document(document)


def test_numerics_are_what_a_bitwise_continuation_needs() -> None:
    made = plan(XEON, "cpu-medium")
    free = {"backend", "keep_weight_casts", "workers", "pin_memory", "numa_binding"}
    free |= {"sync_every"}  # a resumed run's profile has it, and no other is taken
    assert set(made.numerics()) == {field.name for field in fields(Plan)} - free
    assert made.numerics().items() <= values(made).items()


def test_a_plan_knows_nothing_of_free_memory() -> None:
    known = {field.name for kind in (Facts, CpuFacts, Accelerator) for field in fields(kind)}
    words = {"free", "available", "used"}
    assert not [name for name in known if words & set(name.split("_"))]


def test_the_same_facts_give_the_same_plan() -> None:
    for facts in MACHINES:
        assert plan(facts, "cpu-tiny") == plan(facts, "cpu-tiny")


def test_inference_decides_as_training_does() -> None:
    for facts in MACHINES:
        training = plan(facts, "cpu-tiny", "device.processes=1", times=BF16_PAYS)
        inference = make_inference_plan(facts, DeviceSection(), BF16_PAYS.matmul)
        for field in fields(inference):
            assert getattr(inference, field.name) == getattr(training, field.name)


@given(
    gib=st.floats(0.1, 600),
    limit=st.none() | st.floats(0.1, 600),
    cores=st.integers(1, 256),
    quota=st.none() | st.floats(0.01, 300),
    name=st.sampled_from(["cpu-tiny", "cpu-small", "cpu-medium", "gpu-small"]),
)
def test_what_is_planned_fits(
    gib: float, limit: float | None, cores: int, quota: float | None, name: str
) -> None:
    limit_bytes = None if limit is None else int(limit * GIB)
    facts = machine(cpu(cores, gib, quota_cores=quota, memory_limit_bytes=limit_bytes))
    usable_bytes = min(int(gib * GIB), limit_bytes or int(gib * GIB))
    try:
        made = plan(facts, name)
    except DoesNotFitError:
        return
    assert predict(workload_of(profile_of(name)), made).total_bytes < usable_bytes
    assert 1 <= made.threads.value <= max(1, min(cores, quota or cores))
