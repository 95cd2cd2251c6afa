"""What is said before a run follows from its figures, and nothing is said without any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain.choice import Choice
from llmtrain.engine.plan_run import plan_run
from llmtrain.machine.facts import BlockTimes, CpuTimes, MatmulTimes, RunFigures
from llmtrain.plan.forecast import forecast
from llmtrain.plan.planned import Planned
from llmtrain.plan.tensor_bytes import checkpoint_bytes
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from tests.machines import step_times

PRODUCTS = MatmulTimes(fp32_s=1.0, medium_s=0.5, bf16_s=0.25, flops=1e11)
EAGER = step_times(0.1, 0.3, 0.1, micro_batch=16)  # 6 blocks: 1 s for 4,096 tokens
COMPILED = step_times(0.05, 0.1, 0.1, micro_batch=16)
WISHES = ("device.kind=cpu", "device.threads=1", "device.precision=fp32", "device.compile=false")


def profile(*assignments: str) -> Profile:
    return load_profile("cpu-tiny", environment={}, assignments=[*WISHES, *assignments]).profile


def planned(asked: Profile, **changes: Any) -> Planned:
    return replace(plan_run(asked, measure=False), **changes)


def test_the_rate_is_that_of_the_parts_of_a_step() -> None:
    asked = profile("train.steps=100", "train.tokens_per_step=4096")
    times = CpuTimes(PRODUCTS, eager=EAGER, compiled=COMPILED)
    eager = forecast(asked, planned(asked, cpu_times=times)).tokens_per_s
    assert eager is not None
    assert eager.value == pytest.approx(4096)
    assert (eager.source, eager.how) == (
        "estimated",
        "from the parts of an eager step, timed here",
    )
    compiling = planned(asked)
    compiling = replace(compiling, plan=replace(compiling.plan, compile=Choice(True, "")))
    compiled = forecast(asked, replace(compiling, cpu_times=times)).tokens_per_s
    assert compiled is not None
    assert compiled.value == pytest.approx(8192)
    untimed = replace(times, compiled=None)
    unknown = forecast(asked, replace(compiling, cpu_times=untimed)).tokens_per_s
    assert unknown is not None
    assert unknown.value == pytest.approx(4096)
    assert unknown.how.endswith("compiled they are not timed yet")


def test_products_alone_say_nothing_of_a_step() -> None:
    asked = profile("train.steps=100", "train.tokens_per_step=4096")
    assert forecast(asked, planned(asked, cpu_times=CpuTimes(PRODUCTS))).tokens_per_s is None


def test_a_busy_machine_is_named_in_the_forecast() -> None:
    asked = profile("train.steps=100", "train.tokens_per_step=4096")
    busy = step_times(0.1, 0.3, 0.1, micro_batch=16, ran_share=0.5)
    found = forecast(asked, planned(asked, cpu_times=CpuTimes(PRODUCTS, eager=busy)))
    assert found.tokens_per_s is not None
    assert found.tokens_per_s.how.endswith("other programs kept it busy")


def test_a_run_that_was_measured_counts_more_than_estimates() -> None:
    asked = profile("train.steps=100", "train.tokens_per_step=4096")
    times = CpuTimes(PRODUCTS, eager=EAGER)
    last_run = RunFigures(tokens_per_s=1000.0, peak_memory_bytes=1.0, steps=7.0)
    found = forecast(asked, planned(asked, cpu_times=times, last_run=last_run))
    assert found.tokens_per_s is not None
    assert (found.tokens_per_s.value, found.tokens_per_s.source) == (1000.0, "measured")
    assert "a run of 7 steps" in found.tokens_per_s.how

    assert found.seconds is not None
    assert found.tokens is not None
    trained_s = 100 * 4096 / 1000
    assert trained_s < found.seconds.value < 1.2 * trained_s
    assert (found.tokens.value, found.tokens.source) == (409_600, "asked for")


def test_a_time_is_filled_with_the_tokens_that_it_leaves_room_for() -> None:
    asked = profile("train.time=10m", "train.tokens_per_step=4096", "eval.tokens=3000")
    last_run = RunFigures(tokens_per_s=1000.0, peak_memory_bytes=1.0, steps=7.0)
    found = forecast(asked, planned(asked, last_run=last_run))
    assert found.seconds is not None
    assert found.tokens is not None
    assert found.steps is not None
    assert (found.seconds.value, found.seconds.source) == (600, "asked for")
    assert 0.95 * 600_000 < found.tokens.value < 595_000
    assert found.steps.value == found.tokens.value / 4096


def test_what_a_run_took_to_come_to_its_first_step_counts() -> None:
    """The seconds to the first step are known by then: those of a dry run are an estimate."""
    last_run = RunFigures(tokens_per_s=1000.0, peak_memory_bytes=1.0, steps=7.0)
    for length, is_longer in (("train.steps=100", True), ("train.time=10m", False)):
        asked = profile(length, "train.tokens_per_step=4096")
        plan = planned(asked, last_run=last_run)
        short, long = (forecast(asked, plan, elapsed_s) for elapsed_s in (10.0, 110.0))
        assert short.seconds is not None
        assert long.seconds is not None
        assert short.steps is not None
        assert long.steps is not None
        assert long.seconds.value - short.seconds.value == pytest.approx(100.0 * is_longer)
        assert (long.steps.value < short.steps.value) is not bool(is_longer)


def test_what_importing_the_compiler_and_loading_its_code_take_was_timed() -> None:
    asked = profile("train.steps=100", "train.tokens_per_step=4096")
    compiling = planned(asked)
    compiling = replace(compiling, plan=replace(compiling.plan, compile=Choice(True, "")))
    found = []
    for import_s, load_s in ((4.0, 1.5), (4.0, 25.0), (20.0, 1.5)):
        block = BlockTimes(0.4, 0.3, 12.0, load_s=load_s, import_s=import_s)
        times = CpuTimes(PRODUCTS, eager=EAGER, compiled=COMPILED, block=block)
        seconds = forecast(asked, replace(compiling, cpu_times=times)).seconds
        assert seconds is not None
        found.append(seconds.value)
    assert found[1] - found[0] == pytest.approx(25.0 - 1.5)
    assert found[2] - found[0] == pytest.approx(20.0 - 4.0)
    # A run that has built its model has imported it.
    begun, begun_later = (
        forecast(asked, replace(compiling, cpu_times=times), elapsed_s).seconds
        for elapsed_s in (50.0, 60.0)
    )
    assert begun is not None
    assert begun_later is not None
    assert found[2] - begun.value == pytest.approx(20.0 + 6.0 - 50.0)
    assert begun_later.value - begun.value == pytest.approx(10.0)


def test_of_a_machine_that_was_not_measured_no_time_is_said() -> None:
    asked = profile("train.steps=100", "train.tokens_per_step=4096")
    found = forecast(asked, planned(asked))
    assert (found.tokens_per_s, found.seconds) == (None, None)
    assert found.tokens is not None
    assert "seconds" not in found.figures()
    assert found.document()["seconds"] is None


def test_epochs_are_known_when_the_text_is() -> None:
    asked = profile("train.epochs=2", "train.tokens_per_step=4096")
    found = forecast(asked, planned(asked, cpu_times=CpuTimes(PRODUCTS)))
    assert (found.steps, found.tokens, found.seconds, found.val_bpb) == (None, None, None, None)


@pytest.mark.parametrize(("tokens", "is_known"), [("1M", True), ("100k", False), ("1000M", False)])
def test_no_loss_is_said_far_from_what_was_fitted(tokens: str, is_known: bool) -> None:
    asked = profile(f"train.tokens={tokens}", "train.tokens_per_step=4096")
    found = forecast(asked, planned(asked)).val_bpb
    assert (found is not None) == is_known
    if found is not None:
        assert found.low is not None
        assert found.high is not None
        assert 0 < found.low < found.value < found.high < 3


def test_room_on_the_disk_is_that_of_the_checkpoints_that_are_kept() -> None:
    asked = profile("train.tokens_per_step=4096", "checkpoint.keep_last=3")
    plan = planned(asked)
    each = checkpoint_bytes(plan.workload.shape, "muon")
    assert forecast(asked, plan).checkpoints_bytes.value == 5 * each  # the best, and a new one


def test_a_checkpoint_of_adapters_is_that_of_what_is_trained() -> None:
    asked = profile(
        *("train.tokens_per_step=4096", "checkpoint.keep_last=3", "lora.rank=4"),
        *("model.init_from=run", "optim.name=adamw"),
    )
    plan = planned(asked)
    assert plan.workload.lora is not None
    trained = plan.workload.lora.parameters(plan.workload.shape)
    assert forecast(asked, plan).checkpoints_bytes.value == 5 * 12 * trained


def test_a_checkpoint_of_rounds_has_the_state_of_every_process() -> None:
    asked = profile("train.tokens_per_step=4096", "train.sync_every=30", "optim.name=adamw")
    plan = planned(asked)
    plan = replace(plan, plan=replace(plan.plan, processes=Choice(4, "")))
    count, parameters = asked.checkpoint.keep_last + 2, plan.workload.shape.parameters
    expected = count * (4 + 4 + 4 * 8) * parameters
    assert forecast(asked, plan).checkpoints_bytes.value == expected
