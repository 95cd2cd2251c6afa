"""Our own GPU kernels are used where they were seen to run, and no slower than torch's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmtrain.engine.plan_run import plan_run
from llmtrain.errors import UsageError
from llmtrain.machine.facts import CpuTimes, GpuTimes, MatmulTimes, PartTime, StepTimes
from llmtrain.model.step_timing import Way
from llmtrain.model.timing import CompileError, KernelError
from llmtrain.plan import step_benchmarks
from llmtrain.plan.forecast import forecast
from llmtrain.plan.gpu_benchmarks import measured_gpu
from llmtrain.plan.gpu_kernels import choose_own_kernels, is_worth_comparing
from llmtrain.plan.planned import planned_with
from llmtrain.plan.planner import make_plan
from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import ModelShape
from tests.machines import CUDA, WORKLOAD, gpu, step_times, wish

ONE = replace(CUDA, accelerators=(gpu(),))
LONG, SHORT = replace(WORKLOAD, time_s=3600.0), replace(WORKLOAD, time_s=30.0)
FAST, SLOW = step_times(0.01, 0.01, 0.01), step_times(0.02, 0.02, 0.02)


class Gpu:
    """A GPU's times by our own kernels and torch's, which nobody takes."""

    def __init__(self) -> None:
        self.own = self.torch = PartTime(0.01)
        self.own_fails = self.torch_fails = False
        self.error: type[CompileError] = KernelError
        self.timed: list[str] = []
        self.forgotten = 0

    def block(self, _shape: ModelShape, way: Way) -> PartTime:
        self.timed.append(way.block_kernels)
        assert (way.device, way.compiled_block) == ("cuda", True)
        is_own = way.block_kernels == "triton"
        if self.own_fails if is_own else self.torch_fails:
            raise self.error("out of resource: shared memory")
        return self.own if is_own else self.torch

    def head(self, _shape: ModelShape, way: Way, *, compiled: bool) -> PartTime:
        assert compiled
        assert (way.loss == "triton") is (way.block_kernels == "triton")
        return self.own if way.loss == "triton" else self.torch

    def update(self, *_: object) -> PartTime:
        return PartTime(0.001)

    def forget(self, kind: str) -> None:
        assert kind == "cuda"
        self.forgotten += 1


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    device = Gpu()
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(step_benchmarks, "time_chained_block", device.block)
    monkeypatch.setattr(step_benchmarks, "time_head", device.head)
    monkeypatch.setattr(step_benchmarks, "time_update", device.update)
    monkeypatch.setattr(step_benchmarks, "forget_memory", device.forget)
    return device


def kernels(times: GpuTimes | None, **options: object) -> tuple[str, str]:
    plan = make_plan(ONE, wish(**options), LONG, gpu_times=times)
    return plan.block_kernels.value, plan.loss.value


def test_own_kernels_stay_unless_torchs_are_clearly_faster() -> None:
    assert kernels(None) == ("triton", "triton")
    assert kernels(GpuTimes(FAST, SLOW)) == ("triton", "triton")
    near = step_times(0.009, 0.009, 0.009)
    assert kernels(GpuTimes(FAST, near)) == ("triton", "triton")
    assert kernels(GpuTimes(SLOW, FAST)) == ("torch", "chunks")
    chosen = choose_own_kernels(wish(), LONG, GpuTimes(SLOW, FAST), 1)
    assert chosen.reason.startswith("faster: by our own kernels a step takes")
    assert chosen.reason.endswith("measured here")


@pytest.mark.parametrize("option", ["loss", "block_kernels"])
def test_what_is_asked_for_is_used_although_torchs_is_faster(option: str, device: Gpu) -> None:
    device.own = PartTime(0.03)
    asked = wish(**{option: "triton"})
    times = measured_gpu(ONE, asked, LONG, [].append)
    assert device.timed == ["triton"]
    for known in (times, GpuTimes(SLOW, FAST)):
        plan = make_plan(ONE, asked, LONG, gpu_times=known)
        assert (plan.loss.value, plan.block_kernels.value) == ("triton", "triton")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), None])
def test_a_gpu_without_room_is_not_timed(
    error: torch.OutOfMemoryError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> PartTime:
        raise error if error is not None else RuntimeError("device-side assert")

    monkeypatch.setattr(step_benchmarks, "time_chained_block", refused)
    if error is not None:
        assert measured_gpu(ONE, wish(), SHORT, [].append) is None
        return
    with pytest.raises(RuntimeError, match="assert"):
        measured_gpu(ONE, wish(), SHORT, [].append)


def test_kernels_that_cannot_run_are_not_used_and_not_accepted() -> None:
    failed = GpuTimes(torch=SLOW, own_failure="out of resource: shared memory")
    assert kernels(failed) == ("torch", "chunks")
    plan = make_plan(ONE, wish(), LONG, gpu_times=failed)
    assert "cannot run on this GPU: out of resource" in plan.block_kernels.reason
    for option in ("block_kernels", "loss"):
        with pytest.raises(UsageError, match="out of resource"):
            make_plan(ONE, wish(**{option: "triton"}), LONG, gpu_times=failed)


def test_a_run_that_begins_times_its_parts_once(device: Gpu) -> None:
    told: list[str] = []
    assert measured_gpu(ONE, wish(), SHORT) is None  # who only looks waits for no compiler
    first = measured_gpu(ONE, wish(), SHORT, told.append)
    assert (
        first == measured_gpu(ONE, wish(), SHORT, told.append) == measured_gpu(ONE, wish(), SHORT)
    )
    assert (device.timed, len(told), device.forgotten) == (["triton"], 1, 3)
    assert told[0].startswith("timing the parts of a step by our own kernels")


def test_a_long_run_compares_torchs_kernels(device: Gpu) -> None:
    device.own, device.torch = PartTime(0.03), PartTime(0.01)
    times = measured_gpu(ONE, wish(), LONG, [].append)
    assert device.timed == ["triton", "torch"]
    assert make_plan(ONE, wish(), LONG, gpu_times=times).block_kernels.value == "torch"
    asked = wish(block_kernels="triton", loss="triton")
    measured_gpu(ONE, asked, LONG, [].append)
    assert device.timed == ["triton", "torch"]  # nothing to choose
    assert is_worth_comparing(LONG, FAST, 1)
    assert not is_worth_comparing(SHORT, FAST, 1)
    assert not is_worth_comparing(replace(WORKLOAD, tokens=10 * WORKLOAD.tokens_per_step), FAST, 1)
    assert is_worth_comparing(replace(WORKLOAD, tokens=10**12), FAST, 1)


def test_a_failure_of_our_own_kernels_is_the_reason_for_torchs(device: Gpu) -> None:
    device.own_fails = True
    times = measured_gpu(ONE, wish(), SHORT, [].append)
    assert times is not None
    assert (times.own_failure, times.own) == ("out of resource: shared memory", None)
    assert times.torch is not None
    device.torch_fails = True
    deeper = replace(SHORT, shape=replace(SHORT.shape, intermediate_size=128))
    assert measured_gpu(ONE, wish(), deeper, [].append) == GpuTimes(own_failure=times.own_failure)
    plain = wish(loss="chunks", block_kernels="torch")
    assert measured_gpu(ONE, plain, deeper, [].append) is None  # the run will meet it


def test_what_failed_is_not_compiled_again(device: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    device.own_fails = True
    first = measured_gpu(ONE, wish(), SHORT, [].append)
    told: list[str] = []
    assert measured_gpu(ONE, wish(), SHORT, told.append) == first
    assert (device.timed, told) == (["triton", "torch"], [])
    asked = load_profile("gpu-small", environment={}, assignments=[]).profile
    planned = plan_run(asked, facts=ONE, announce=[].append)
    device.timed.clear()
    looked_at = plan_run(asked, facts=ONE).plan  # as --dry-run
    assert (looked_at.block_kernels, looked_at.loss) == (
        planned.plan.block_kernels,
        planned.plan.loss,
    )
    assert looked_at.block_kernels.value == "torch"
    assert "out of resource" in looked_at.block_kernels.reason
    assert device.timed == []
    monkeypatch.setattr(step_benchmarks, "source_digest", lambda: "other kernels")
    assert measured_gpu(ONE, wish(), SHORT) is None
    device.own_fails = False
    again = measured_gpu(ONE, wish(), SHORT, [].append)
    assert again is not None
    assert again.own_failure is None


def test_a_compiler_that_failed_is_tried_again(device: Gpu) -> None:
    device.own_fails, device.error = True, CompileError  # a full disk, say
    measured_gpu(ONE, wish(), SHORT, [].append)
    device.own_fails = False
    again = measured_gpu(ONE, wish(), SHORT, [].append)
    assert again is not None
    assert (again.own_failure, again.own is None) == (None, False)


def test_machines_without_a_gpu_are_not_timed_as_one(device: Gpu) -> None:
    flags = ["device.kind=cpu", "device.compile=false"]
    asked = load_profile("cpu-tiny", environment={}, assignments=flags).profile
    assert plan_run(asked, facts=ONE, measure=False).gpu_times is None
    assert device.timed == []


def _rate(
    plan_times: GpuTimes,
    processes: int,
    parts: StepTimes,
    name: str = "NVIDIA H200",
    sharding: str = "auto",
) -> float:
    facts = replace(CUDA, accelerators=tuple(replace(gpu(index), name=name) for index in range(2)))
    asked = load_profile("gpu-small", environment={}, assignments=["train.steps=100"]).profile
    workload = replace(LONG, tokens_per_step=64 * 48)
    plan = make_plan(
        facts, wish(processes=processes, sharding=sharding), workload, gpu_times=plan_times
    )
    planned = planned_with(plan, workload, facts, gpu_times=plan_times)
    assert planned.step_times == parts
    found = forecast(asked, planned).tokens_per_s
    assert found is not None
    assert found.how == "from the parts of a compiled step, timed here"
    return found.value


def test_the_rate_of_gpus_follows_from_the_parts_and_their_link() -> None:
    one = _rate(GpuTimes(FAST), 1, FAST)
    micro_batches = 48 / FAST.micro_batch
    assert one == pytest.approx(64 * 48 / (micro_batches * (2 * 0.01 + 0.01) + 0.01))
    assert _rate(GpuTimes(SLOW, FAST), 1, FAST) == pytest.approx(one)
    two = _rate(GpuTimes(FAST), 2, FAST)
    unknown = _rate(GpuTimes(FAST), 2, FAST, name="another GPU")
    assert one < two < unknown < 2 * one
    slow = step_times(0.01, 0.01, 10.0)  # an update that ranks share
    assert _rate(GpuTimes(slow), 2, slow, sharding="shard") > 1.8 * _rate(GpuTimes(slow), 2, slow)


def test_a_cpu_has_no_times_of_a_gpu() -> None:
    plan = make_plan(ONE, wish(kind="cpu"), LONG)
    times = CpuTimes(MatmulTimes(1.0, 1.0, 1.0, 1e9), eager=FAST)
    assert planned_with(plan, LONG, ONE, times).step_times == FAST
    assert planned_with(plan, LONG, ONE).step_times is None
