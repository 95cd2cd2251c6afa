"""What a plan takes is learnt from what the process held; looks are few."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from llmtrain.choice import Choice
from llmtrain.machine.memory_pressure import Bound, MemoryAction
from llmtrain.plan.memory_watch import MemorySample, MemoryWatch, sample_memory
from llmtrain.plan.planner import Plan, make_plan, predict
from llmtrain.plan.smaller import smaller_plan, smaller_plans
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from tests.machines import CPU, CUDA, wish

MIB = 2**20
SHAPE = shape_of(ModelSection(hidden_size=256, num_heads=4, num_layers=8, context=512))
_SECONDS = itertools.count(1.0)
WORKLOAD = Workload(SHAPE, tokens_per_step=16 * 512)


def planned(micro_batch: int = 8) -> Plan:
    plan = make_plan(CPU, wish(), WORKLOAD)
    return replace(
        plan, micro_batch=Choice(micro_batch, ""), accumulation=Choice(16 // micro_batch, "")
    )


def look(
    limit: int, *, held: int, peak: int | None = None, others: int = 0, at_s: float | None = None
) -> MemorySample:
    """A look; where it is not said when, it is a second after the one before it."""
    at_s = next(_SECONDS) if at_s is None else at_s
    return MemorySample(at_s, [Bound("the group", limit, held + others)], held, peak or held)


def limit_for(need_bytes: int) -> int:
    """The smallest limit under which so much is comfortable."""
    return next(n for n in range(need_bytes, 2 * need_bytes, 4096) if n - n // 12 >= need_bytes)


def test_before_a_step_the_prediction_counts() -> None:
    plan = planned()
    total = predict(WORKLOAD, plan).total_bytes
    held = total // 4
    fitting = limit_for(total)
    assert MemoryWatch(WORKLOAD, plan).judge(look(fitting, held=held), plan, 0) == MemoryAction()
    tight = MemoryWatch(WORKLOAD, plan).judge(look(fitting - 2 * MIB, held=held), plan, 0)
    assert tight.smaller == 1


def test_others_count_before_a_step() -> None:
    plan = planned()
    total = predict(WORKLOAD, plan).total_bytes
    limit = limit_for(total) + 100 * MIB
    watch = MemoryWatch(WORKLOAD, plan)
    assert watch.judge(look(limit, held=total // 4, others=50 * MIB), plan, 0) == MemoryAction()
    watch = MemoryWatch(WORKLOAD, plan)
    assert watch.judge(look(limit, held=total // 4, others=300 * MIB), plan, 0).smaller > 0


def test_after_a_step_its_peak_counts() -> None:
    plan = planned()
    total = predict(WORKLOAD, plan).total_bytes
    watch = MemoryWatch(WORKLOAD, plan)
    watch.judge(look(2 * total, held=total // 4), plan, 0)
    peak = total // 2  # it takes half of what was predicted
    limit = limit_for(peak)
    assert watch.judge(look(limit, held=peak - MIB, peak=peak), plan, 1) == MemoryAction()
    more = peak + 20 * MIB
    assert watch.judge(look(limit, held=peak - MIB, peak=more), plan, 1).smaller == 1


def test_in_the_midst_of_the_first_step_only_a_higher_peak_counts() -> None:
    plan = planned()
    total = predict(WORKLOAD, plan).total_bytes
    limit = limit_for(total)
    watch = MemoryWatch(WORKLOAD, plan)
    watch.judge(look(2 * total, held=total // 4), plan, 0)
    held = total // 3  # it has hardly begun
    assert watch.judge(look(limit, held=held, peak=held), plan, 0) == MemoryAction()
    assert watch.judge(look(limit - 2 * MIB, held=held, peak=held), plan, 0).smaller == 1
    more = total + 20 * MIB
    assert watch.judge(look(limit, held=held, peak=more), plan, 0).smaller == 1


def test_a_peak_that_was_reached_in_the_midst_of_a_step_counts_after_it() -> None:
    plan = planned()
    total = predict(WORKLOAD, plan).total_bytes
    watch, peak = MemoryWatch(WORKLOAD, plan), total // 2
    watch.judge(look(2 * total, held=total // 4), plan, 0)
    watch.judge(look(2 * total, held=peak, peak=peak), plan, 0)
    assert watch.judge(look(limit_for(peak), held=peak, peak=peak), plan, 1) == MemoryAction()


def test_a_peak_from_before_says_nothing_of_the_plan() -> None:
    plan = planned()
    total = predict(WORKLOAD, plan).total_bytes
    watch = MemoryWatch(WORKLOAD, plan)
    limit = limit_for(total)
    for _ in range(2):  # tokenizing once took ten times what training will
        assert watch.judge(look(limit, held=total // 4, peak=10 * total), plan, 0) == MemoryAction()


def test_a_smaller_plan_is_expected_to_take_less_than_the_peak_of_the_larger() -> None:
    plan = planned()
    less = smaller_plan(plan, "")
    assert less is not None
    saved = predict(WORKLOAD, plan).total_bytes - predict(WORKLOAD, less).total_bytes
    peak = 2 * predict(WORKLOAD, plan).total_bytes
    watch = MemoryWatch(WORKLOAD, plan)
    watch.judge(look(4 * peak, held=peak // 4), plan, 0)
    limit = limit_for(peak - saved)
    assert watch.judge(look(limit, held=peak - MIB, peak=peak), plan, 1).smaller == 1
    # It was taken: what it does not need was given back, and the peak is still the larger plan's.
    assert watch.judge(look(limit, held=peak // 4, peak=peak), less, 1) == MemoryAction()
    assert watch.judge(look(limit, held=peak // 4, peak=peak), less, 2) == MemoryAction()
    tighter = watch.judge(look(limit - 2 * MIB, held=peak // 4, peak=peak), less, 2)
    assert tighter.smaller == 1


def test_several_processes_take_as_much_each() -> None:
    plan = planned()
    workload = replace(WORKLOAD, launched_processes=2, launched_local_processes=2)
    total = predict(workload, plan).total_bytes
    limit = limit_for(total)
    held = total // 8
    two = MemorySample(1.0, [Bound("the group", limit, 2 * held)], held, held)
    assert MemoryWatch(workload, plan).judge(two, plan, 0) == MemoryAction()
    tight = MemorySample(1.0, [Bound("the group", limit - 2 * MIB, 2 * held)], held, held)
    assert MemoryWatch(workload, plan).judge(tight, plan, 0).smaller == 1


def test_a_gpus_plan_is_not_made_smaller_for_the_machines_memory() -> None:
    plan = make_plan(CUDA, wish(), WORKLOAD)
    watch = MemoryWatch(WORKLOAD, plan)
    held = 100 * MIB
    assert watch.judge(look(2 * held, held=held), plan, 0) == MemoryAction()
    assert watch.judge(look(held, held=held), plan, 0).stop


def test_it_reads_at_once_and_then_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, reads = planned(), []
    moments_s, now_s = [7.0, 7.1, 7.49, 7.5, 7.9, 8.01], 0.0
    monkeypatch.setattr("llmtrain.plan.memory_watch.time.monotonic", lambda: now_s)

    def read() -> MemorySample:
        reads.append(1)
        return look(10**12, held=1, at_s=now_s)

    watch = MemoryWatch(WORKLOAD, plan, read)
    counts = []
    for moment_s in moments_s:
        now_s = moment_s
        assert watch.check(plan, 0) == MemoryAction()
        counts.append(len(reads))
    assert counts == [1, 1, 1, 2, 2, 3]


def test_a_neighbour_that_grows_is_expected_to_grow_until_the_next_look() -> None:
    plan = planned()
    total = predict(WORKLOAD, plan).total_bytes
    limit = limit_for(total) + 1000 * MIB
    watch = MemoryWatch(WORKLOAD, plan)
    held = total // 4
    for at_s, others in ((0, 0), (10, 100), (20, 200), (30, 300), (40, 400)):  # 10 MiB/s
        found = watch.judge(look(limit, held=held, others=others * MIB, at_s=at_s), plan, 0)
        assert found == MemoryAction()
    # Looks were 10 s apart: 100 MiB more until the next one.
    assert watch.judge(look(limit, held=held, others=905 * MIB, at_s=50), plan, 0).smaller > 0


def test_a_machine_that_slept_is_not_expected_to_sleep_again() -> None:
    plan = planned()
    total = predict(WORKLOAD, plan).total_bytes
    limit = limit_for(total) + 1000 * MIB
    watch = MemoryWatch(WORKLOAD, plan)
    for at_s, others in ((0, 0), (1, 1), (100_000, 2), (100_001, 3), (100_002, 4)):
        found = watch.judge(look(limit, held=total // 4, others=others * MIB, at_s=at_s), plan, 0)
        assert found == MemoryAction()


def test_a_system_that_does_not_say_is_not_watched() -> None:
    def read() -> MemorySample:
        raise OSError("no such file")

    plan = planned()
    assert MemoryWatch(WORKLOAD, plan, read).check(plan, 0) == MemoryAction()


def test_this_machine_says() -> None:
    now = sample_memory()
    assert now.bounds[0].name == "the machine"
    assert 0 < now.held_bytes <= 1.01 * now.peak_bytes
    assert now.held_bytes < now.bounds[0].limit_bytes
    assert 0 < now.bounds[0].used_bytes < now.bounds[0].limit_bytes


@pytest.mark.parametrize("micro_batch", [2, 16])
def test_the_first_look_may_take_several_smaller_plans(micro_batch: int) -> None:
    plan = planned(micro_batch)
    plans = list(smaller_plans(plan))
    least = predict(WORKLOAD, plans[-1]).total_bytes
    found = MemoryWatch(WORKLOAD, plan).judge(look(limit_for(least), held=least // 4), plan, 0)
    assert found.smaller == len(plans)
