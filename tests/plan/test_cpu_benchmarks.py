"""What takes long is measured once, when a run begins that gains by it, and may fail."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain import engine
from llmtrain.choice import Choice
from llmtrain.engine.plan_run import plan_run
from llmtrain.errors import UsageError
from llmtrain.machine.facts import (
    AttentionTimes,
    BlockTimes,
    Facts,
    LossTimes,
    MatmulTimes,
    PartTime,
)
from llmtrain.machine.probe import read_facts
from llmtrain.model.step_timing import Way
from llmtrain.plan import cpu_benchmarks, kernel_probes, numerics, step_benchmarks
from llmtrain.plan.planner import Plan
from llmtrain.plan.workload import Workload
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import DeviceSection, ModelSection
from llmtrain.profile.setting import Setting
from llmtrain.profile.shape import shape_of
from llmtrain.progress import Note
from llmtrain.train.events import Event, Started
from tests import small
from tests.clock import KERNELS, PARTS, Clock

SETTINGS: dict[str, Any] = {
    **small.SETTINGS,
    "train.steps": 3,
    "optim.warmup_steps": 1,
    "eval.every_steps": 3,
    "eval.tokens": 512,
    "eval.sample_every_steps": None,
}
TIMED = [
    f"timing {what}, once for this machine and shape: a few seconds"
    for what in ("products", "attention", "the parts of a step")
]
COMPILED = ["block", "compiled head"]  # the update is the same
ONCE = "compiling one block, once for this machine and shape: up to a minute"
LOSS = "compiling the loss, once for this machine and shape: some seconds"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    """Nothing is really timed, and the cache is the test's own."""
    clock = Clock()
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    clock.install(monkeypatch)
    return clock


@pytest.fixture
def facts() -> Facts:
    """This machine, with a compiler, no GPU, and a processor that has no native kernels."""
    here = read_facts()
    cpu = replace(here.cpu, isa=())
    return replace(here, cpu=cpu, accelerators=(), cxx_compiler="/usr/bin/g++")


def plan(facts: Facts, told: list[str] | None, **settings: Any) -> Plan:
    """The plan of a run that lasts an hour; where something listens, it is about to begin."""
    hour = {"train.steps": None, "train.time": "1h"}
    given = {name.replace("__", "."): value for name, value in settings.items()}
    flags = {name: Setting(value, "test") for name, value in (SETTINGS | hour | given).items()}
    profile = load_profile(environment={}, flags=flags).profile
    announce = told.append if told is not None else None
    return plan_run(profile, facts=facts, announce=announce).plan


def test_a_run_that_begins_compiles_a_block_once(clock: Clock, facts: Facts) -> None:
    told: list[str] = []
    first, again = plan(facts, told), plan(facts, told)
    assert first == again
    assert first.compile.value is True
    assert first.compile.reason.startswith("one block takes 30 ms against 40 ms eager")
    assert sorted(clock.asked) == sorted([*KERNELS, *PARTS, *COMPILED])
    assert told == [*TIMED, ONCE, "compiled in 7 s", LOSS]


def test_who_only_looks_waits_for_no_compiler(clock: Clock, facts: Facts) -> None:
    looked = plan(facts, None)
    assert looked.compile.value is True
    assert looked.compile.reason == "the run is long enough; compared with eager when it starts"
    assert sorted(clock.asked) == sorted([*KERNELS, *PARTS])
    plan(facts, [])
    assert "30 ms against 40 ms" in plan(facts, None).compile.reason


def test_what_is_slower_compiled_runs_eagerly_and_keeps_all(clock: Clock, facts: Facts) -> None:
    clock.block = BlockTimes(eager_s=0.03, compiled_s=0.04, compile_s=7.0)
    made = plan(facts, [])
    assert (made.compile.value, made.activation_checkpointing.value) == (False, "off")
    assert "40 ms against 30 ms" in made.compile.reason


@pytest.mark.parametrize(
    "settings",
    [{"train__time": "60s"}, {"device__compile": False}],
    ids=["short", "unwanted"],
)
def test_nothing_is_compiled_for_a_run_that_computes_eagerly(
    clock: Clock, facts: Facts, settings: dict[str, Any]
) -> None:
    told: list[str] = []
    plan(facts, told, **settings)
    assert "block" not in clock.asked
    assert told == TIMED


def test_what_was_asked_for_is_timed_for_the_forecast(clock: Clock, facts: Facts) -> None:
    clock.block = BlockTimes(eager_s=0.03, compiled_s=0.04, compile_s=7.0)
    asked = plan(facts, [], device__compile=True)
    assert (asked.compile.value, asked.compile.reason) == (True, "asked for")
    assert "compiled head" in clock.asked


def test_a_contended_block_is_compared_once(clock: Clock, facts: Facts) -> None:
    """The ratio of its CPU times holds; the eager block that it scales is timed again."""
    clock.block = replace(clock.block, ran_share=0.5)
    plan(facts, [])
    clock.block = replace(clock.block, ran_share=1.0)
    plan(facts, [])
    assert clock.asked.count("block") == 1


def test_a_fresh_cache_decides_alike(
    clock: Clock, facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a step that differ by a tenth, as repeated measurements do, change no bits."""
    made = []
    for number, slower in enumerate((0.9, 1.0, 1.1)):
        monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / str(number)))
        clock.part = PartTime(0.02 * slower, ran_share=1.0 if number else 0.4)
        clock.block = BlockTimes(0.04, 0.03 * slower, 7.0, wall_s=0.02 * slower)
        made.append(plan(facts, []).numerics())
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("asks", [True, False], ids=["a run", "a question"])
def test_native_kernels_that_are_missing_are_told_once_and_the_run_goes_on(
    asks: bool, clock: Clock, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def missing(*_: object, compiles: bool, **__: object) -> Choice[bool]:
        asked.append(compiles)
        return Choice(False, "no C++ compiler was found: install one")

    fast = MatmulTimes(fp32_s=0.1, medium_s=0.1, bf16_s=0.01, flops=1e9)
    monkeypatch.setattr(kernel_probes, "time_matmuls", lambda *_: fast)
    monkeypatch.setattr(kernel_probes, "unsuitable", lambda *_: None)
    monkeypatch.setattr(kernel_probes, "load_kernels", missing)
    told: list[str] = []
    made = plan(facts, told if asks else None)
    assert (made.attention.value, made.loss.value) == ("blocks", "chunks")
    assert asked == [asks]  # whoever asks for a plan alone waits for no compiler
    why = "without native kernels training takes longer: no C++ compiler was found"
    assert [line for line in told if "native" in line] == [f"{why}: install one"] * asks
    plan(facts, None, train__time="20s")
    assert asked == [asks]


def test_native_kernels_are_timed_beside_the_others_and_chosen(
    facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = MatmulTimes(fp32_s=0.1, medium_s=0.1, bf16_s=0.01, flops=1e9)
    timed: list[object] = []

    def attention(*arguments: object) -> AttentionTimes:
        timed.append(arguments[-1])
        return AttentionTimes(sdpa_s=0.4, blocks_s=0.3, native_s=0.1 if arguments[-1] else None)

    monkeypatch.setattr(kernel_probes, "time_matmuls", lambda *_: fast)
    monkeypatch.setattr(kernel_probes, "time_attention", attention)
    monkeypatch.setattr(kernel_probes, "time_loss", lambda *_: LossTimes(0.3, 0.1))
    monkeypatch.setattr(kernel_probes, "unsuitable", lambda *_: None)
    monkeypatch.setattr(kernel_probes, "load_kernels", lambda *_, **__: Choice(True, "there"))
    assert plan(facts, [], train__time="20s").attention.value == "blocks"
    for _ in range(2):
        made = plan(facts, [])
        assert (made.attention.value, made.loss.value) == ("native", "native")
    assert plan(facts, [], train__time="20s").attention.value == "blocks"
    assert timed == [False, True]


def test_blocks_that_keep_gates_are_timed_beside_others_where_that_is_to_be_decided(
    facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = MatmulTimes(fp32_s=0.1, medium_s=0.1, bf16_s=0.01, flops=1e9)
    timed: list[tuple[str, str]] = []

    def block(_: object, way: Way) -> PartTime:
        timed.append((way.block_kernels, way.checkpointing))
        return PartTime(0.02 if timed[-1] == ("native", "off") else 0.03)

    monkeypatch.setattr(kernel_probes, "time_matmuls", lambda *_: fast)
    monkeypatch.setattr(
        kernel_probes, "time_attention", lambda *_: AttentionTimes(0.4, 0.3, native_s=0.1)
    )
    monkeypatch.setattr(kernel_probes, "time_loss", lambda *_: LossTimes(0.3, 0.1))
    monkeypatch.setattr(kernel_probes, "unsuitable", lambda *_: None)
    monkeypatch.setattr(kernel_probes, "load_kernels", lambda *_, **__: Choice(True, "there"))
    monkeypatch.setattr(step_benchmarks, "time_chained_block", block)
    native = {"device__block_kernels": "native", "device__compile": False}
    asked = plan(facts, [], **native, device__activation_checkpointing="selective")
    assert asked.activation_checkpointing.value == "selective"
    assert ("native", "off") not in timed
    for _ in range(2):
        made = plan(facts, [], **native)
        assert made.activation_checkpointing.value == "off"
        assert "kept gates are faster" in made.activation_checkpointing.reason
    assert timed.count(("native", "off")) == 1


def test_tokens_a_step_do_not_depend_on_whether_kernels_were_compiled_before(
    facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a first run for a time and the same one later would compute different bits."""
    fast = MatmulTimes(fp32_s=0.1, medium_s=0.1, bf16_s=0.01, flops=1e9)
    monkeypatch.setattr(kernel_probes, "time_matmuls", lambda *_: fast)
    monkeypatch.setattr(
        kernel_probes, "time_attention", lambda *_: AttentionTimes(0.4, 0.3, native_s=0.1)
    )
    monkeypatch.setattr(kernel_probes, "time_loss", lambda *_: LossTimes(0.3, 0.1))
    monkeypatch.setattr(kernel_probes, "unsuitable", lambda *_: None)
    monkeypatch.setattr(
        step_benchmarks,
        "time_chained_block",
        lambda _, way: PartTime(0.001 if way.attention == "native" else 0.02),
    )
    rates = []
    for has_kernels in (False, True):
        monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / str(has_kernels)))
        found = Choice(has_kernels, "")
        monkeypatch.setattr(kernel_probes, "load_kernels", lambda *_, found=found, **__: found)
        shape = shape_of(ModelSection(hidden_size=32, num_heads=2, num_layers=2, context=32))
        workload = Workload(shape, tokens_per_step=256)
        rates.append(cpu_benchmarks.eager_tokens_per_s(facts, DeviceSection(), workload))
    assert rates[0] == rates[1]


def test_kernels_that_are_asked_for_are_compiled_for_a_question_too(
    facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def missing(*_: object, compiles: bool, **__: object) -> Choice[bool]:
        asked.append(compiles)
        return Choice(False, "no C++ compiler was found")

    monkeypatch.setattr(kernel_probes, "load_kernels", missing)
    with pytest.raises(UsageError, match=r"device\.attention native: no C"):
        plan(facts, None, device__attention="native", device__precision="bf16")
    assert asked == [True]


def test_without_a_compiler_nothing_is_compiled(clock: Clock, facts: Facts) -> None:
    made = plan(replace(facts, cxx_compiler=None), [])
    assert made.compile.reason == "eager: no C++ compiler was found"
    assert "block" not in clock.asked


def test_another_compiler_or_another_micro_batch_is_measured_anew(
    clock: Clock, facts: Facts
) -> None:
    plan(facts, [])
    plan(replace(facts, cxx_compiler="/usr/bin/clang++"), [])
    plan(facts, [], train__micro_batch=2)
    assert clock.asked.count("block") == 3
    assert clock.asked.count("eager block") == 2  # the compiler has no part in it


def test_masked_documents_are_measured_as_such(
    clock: Clock, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what was measured without, and in both: attention, and the block that compiles."""
    told: list[object] = []

    def attention(*args: object) -> AttentionTimes:
        told.append(args[3])
        return AttentionTimes(sdpa_s=0.4, blocks_s=0.3)

    def block(*_: object, **how: object) -> BlockTimes:
        told.append(how["masked"])
        return clock.block

    monkeypatch.setattr(kernel_probes, "time_attention", attention)
    monkeypatch.setattr(kernel_probes, "time_block", block)
    for masked in (False, True, False, True):
        plan(facts, [], data__mask_documents=masked)
    assert told == [False, False, True, True]


def test_a_failure_is_told_and_tried_again(clock: Clock, facts: Facts) -> None:
    """The next run may find a compiler that works."""
    clock.failure = "fatal error: omp.h: No such file or directory"
    failed = plan(facts, [])
    assert failed.compile.value is False
    assert failed.compile.reason == f"eager: compiling failed: {clock.failure}"
    clock.failure = None
    assert plan(facts, []).compile.value is True
    assert clock.asked.count("block") == 2


def test_training_goes_on_eagerly_where_compiling_fails(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics, "_WORTH_COMPILING_CPU_S", 0.0)
    clock.failure = "fatal error: omp.h: No such file or directory"
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    text = "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(800))
    (tmp_path / "corpus.txt").write_text(text)
    events: list[Event] = []
    with monkeypatch.context() as patch:
        patch.setattr("llmtrain.engine.request.read_facts", with_compiler)
        result = engine.train(
            "cpu-tiny",
            data=[str(tmp_path / "corpus.txt")],
            settings=SETTINGS,
            out=tmp_path / "run",
            observe=events.append,
        )
    assert (result.steps, result.stopped) == (3, "done")
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.plan.compile.value is False
    assert ONCE in [event.text for event in events if isinstance(event, Note)]
    recorded = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["plan"]["compile"]
    assert recorded == {"value": False, "reason": f"eager: compiling failed: {clock.failure}"}


def with_compiler(cuda_index: int | None = None, *, tries_gpus: bool = True) -> Facts:
    return replace(read_facts(cuda_index, tries_gpus=tries_gpus), cxx_compiler="/usr/bin/g++")
