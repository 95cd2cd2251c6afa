"""What is measured anew is what the next plan finds, and what its work is predicted from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.engine.bench import Bench, bench_cpu
from llmtrain.engine.plan_run import plan_run
from llmtrain.engine.workload import workload_of
from llmtrain.errors import UsageError
from llmtrain.machine.facts import (
    Accelerator,
    AttentionTimes,
    BlockTimes,
    Facts,
    MatmulTimes,
    PartTime,
)
from llmtrain.machine.probe import read_facts
from llmtrain.model.timing import CompileError
from llmtrain.plan import kernel_probes
from llmtrain.plan.kernel_probes import cpu_threads
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from llmtrain.profile.setting import Setting
from tests import small
from tests.clock import KERNELS, PARTS, Clock

SETTINGS: dict[str, Any] = {
    **small.SETTINGS,
    "train.steps": 10**9,  # long enough to compile
}
BF16_PAYS = MatmulTimes(fp32_s=0.2, medium_s=0.2, bf16_s=0.1, flops=1e9)
MEDIUM_PAYS = MatmulTimes(fp32_s=0.2, medium_s=0.1, bf16_s=0.2, flops=1e9)
BLOCK = BlockTimes(eager_s=0.04, compiled_s=0.03, compile_s=7.0)
COMPILED = ["block", "compiled head", "update"]


def profile(**settings: Any) -> Profile:
    """A tiny profile; `train__steps=5` sets train.steps."""
    values = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    flags = {name: Setting(value, "test") for name, value in values.items()}
    return load_profile(environment={}, flags=flags).profile


@pytest.fixture
def facts() -> Facts:
    """This machine, with a compiler, no GPU, and a processor without native kernels."""
    here = read_facts()
    cpu = replace(here.cpu, isa=())
    return replace(here, cpu=cpu, accelerators=(), cxx_compiler="/usr/bin/g++")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    """Nothing is really timed, and the cache is the test's own."""
    clock = Clock()
    clock.products = BF16_PAYS
    clock.parts = {
        "eager block": PartTime(0.04),
        "compiled head": PartTime(0.01),
        "update": PartTime(0.005),
    }
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    clock.install(monkeypatch)
    return clock


def bench(profile: Profile, facts: Facts, *, block: bool = True) -> Bench:
    return bench_cpu(profile, facts, block=block, announce=lambda text: None)


def test_next_plan_uses_the_fresh_times(clock: Clock, facts: Facts) -> None:
    benched = bench(profile(), facts)
    taken = sorted([*KERNELS, *PARTS, *COMPILED])
    assert sorted(clock.asked) == taken
    assert clock.blocks[0]["checkpointing"] == "selective"

    planned = plan_run(profile(), facts=facts, announce=pytest.fail)

    assert sorted(clock.asked) == taken
    assert planned.plan == benched.plan
    assert "30 ms against 40 ms" in planned.plan.compile.reason


def test_every_bench_measures_anew(clock: Clock, facts: Facts) -> None:
    bench(profile(), facts)
    clock.products, clock.attention = MEDIUM_PAYS, AttentionTimes(sdpa_s=0.1, blocks_s=0.3)
    clock.block = BlockTimes(eager_s=0.03, compiled_s=0.04, compile_s=7.0)

    bench(profile(), facts)

    plan = plan_run(profile(), facts=facts).plan
    assert sorted(clock.asked) == sorted(2 * [*KERNELS, *PARTS, *COMPILED])
    assert (plan.precision.value, plan.matmul_precision.value) == ("fp32", "medium")
    assert plan.attention.value == "sdpa"
    assert "40 ms against 30 ms" in plan.compile.reason


def test_short_run_benches_the_block_of_a_long_one(clock: Clock, facts: Facts) -> None:
    benched = bench(profile(train__steps=5), facts)
    assert benched.plan.compile.value is False
    assert benched.times.block == BLOCK

    assert plan_run(profile(), facts=facts, announce=pytest.fail).plan.compile.value is True


def test_products_are_multiplied_as_the_plan_has_them(clock: Clock, facts: Facts) -> None:
    before = torch.get_float32_matmul_precision()
    bench(profile(), facts)
    clock.products = MEDIUM_PAYS
    bench(profile(), facts)

    assert clock.matmul_precisions == ["highest", "highest", "medium", "medium"]
    assert torch.get_float32_matmul_precision() == before


def test_speed_follows_from_the_way_the_plan_computes(clock: Clock, facts: Facts) -> None:
    compiled = bench(profile(), facts)
    eager = bench(profile(device__compile=False), facts)

    assert compiled.step_s is not None
    assert eager.step_s is not None
    assert eager.step_s - compiled.step_s == pytest.approx(2 * (0.04 - 0.03) + 0.02 - 0.01)
    assert compiled.step_s == pytest.approx(2 * 0.03 + 0.01 + 0.005)  # layers, head, optimizer
    assert compiled.tokens_per_s == pytest.approx(256 / compiled.step_s)


def test_an_eager_plan_has_a_speed_whatever_is_recomputed(clock: Clock, facts: Facts) -> None:
    benched = bench(profile(device__compile=False, device__activation_checkpointing="full"), facts)
    assert benched.times.block == BLOCK
    assert benched.step_s == pytest.approx(2 * 0.04 + 0.02 + 0.005)


def test_no_block_where_none_is_wanted_or_compiles(clock: Clock, facts: Facts) -> None:
    for benched in (
        bench(profile(), facts, block=False),
        bench(profile(), replace(facts, cxx_compiler=None)),
    ):
        assert benched.times.block is None
        assert benched.times.compile_failure is None
        assert benched.times.compiled is None
    assert "block" not in clock.asked


def test_failure_to_compile_is_part_of_the_times(
    clock: Clock, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_float32_matmul_precision()

    def fail(_: Any, **settings: Any) -> BlockTimes:
        raise CompileError("g++: fatal error")

    monkeypatch.setattr(kernel_probes, "time_block", fail)
    clock.products = MEDIUM_PAYS

    benched = bench(profile(), facts)

    assert (benched.times.block, benched.times.compile_failure) == (None, "g++: fatal error")
    assert benched.plan.compile.value is False
    assert "g++: fatal error" in benched.plan.compile.reason
    assert benched.step_s == pytest.approx(2 * 0.04 + 0.02 + 0.005)  # eager
    assert torch.get_float32_matmul_precision() == before


def test_processes_share_the_cores(facts: Facts) -> None:
    eight = replace(
        facts,
        cpu=replace(
            facts.cpu,
            physical_cores=8,
            logical_cores=8,
            affinity_cores=None,
            affinity_physical_cores=None,
            quota_cores=None,
        ),
    )
    for processes, threads in (("auto", 8), (1, 8), (2, 4), (8, 1)):
        asked = profile(device__processes=processes, device__threads="auto")
        assert cpu_threads(eight, asked.device, workload_of(asked, None, eight)) == threads


def test_plan_for_a_gpu_is_refused(clock: Clock, facts: Facts) -> None:
    gpu = replace(facts, accelerators=(Accelerator("cuda", 0, "H100", 80 << 30, True),))

    with pytest.raises(UsageError, match="only the CPU is measured") as refused:
        bench(profile(device__kind="auto"), gpu)
    assert refused.value.hint == "--force-cpu"
    assert clock.asked == []

    assert bench(profile(device__kind="auto", device__force_cpu=True), gpu).plan.device.value == (
        "cpu"
    )
