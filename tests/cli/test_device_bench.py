"""`device bench`: tables for people, one document for programs, fresh times for the next run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain.choice import Choice
from llmtrain.engine import request
from llmtrain.machine.facts import (
    Accelerator,
    AttentionTimes,
    BlockTimes,
    LossTimes,
    MatmulTimes,
    PartTime,
)
from llmtrain.machine.probe import read_facts
from llmtrain.model.timing import CompileError
from llmtrain.plan import kernel_probes, step_benchmarks
from tests.caches import own_cache
from tests.cli.conftest import Command, ProcessCommand

BENCH = ("device", "bench", "-p", "tiny.yaml")
# Two layers of 2,048 × 32 × 64 forward and backward: 0.05 GFLOP.
PRODUCTS = MatmulTimes(fp32_s=0.020, medium_s=0.020, bf16_s=0.010, flops=0.05e9)
ATTENTION = AttentionTimes(sdpa_s=0.004, blocks_s=0.003)
BLOCK = BlockTimes(eager_s=0.04, compiled_s=0.03, compile_s=7.0, load_s=1.5, import_s=3.0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(own_cache(tmp_path / "cache")))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are invented, on a machine with a compiler and without native kernels."""
    here = read_facts()
    cpu = replace(here.cpu, isa=())
    facts = replace(here, cpu=cpu, accelerators=(), cxx_compiler="/usr/bin/g++")
    monkeypatch.setattr(request, "read_facts", lambda **_: facts)
    monkeypatch.setattr(kernel_probes, "time_matmuls", lambda *_: PRODUCTS)
    monkeypatch.setattr(kernel_probes, "time_attention", lambda *_: ATTENTION)
    monkeypatch.setattr(kernel_probes, "time_block", lambda *_, **__: BLOCK)
    monkeypatch.setattr(step_benchmarks, "time_chained_block", lambda *_: PartTime(0.041))
    monkeypatch.setattr(step_benchmarks, "time_head", time_head)
    monkeypatch.setattr(step_benchmarks, "time_update", lambda *_: PartTime(0.005))


def time_head(*_: object, compiled: bool) -> PartTime:
    return PartTime(0.01 if compiled else 0.02)


@pytest.mark.usefixtures("invented")
def test_document(llmtrain: Command) -> None:
    outcome = llmtrain(*BENCH, "--json")
    document = outcome.document

    assert set(document) - {"schema_version", "llmtrain"} == {
        *("profile", "cpu", "products", "attention", "loss", "native_missing"),
        *("block", "compile_failure", "eager", "compiled", "native", "native_keeping"),
        *("plan", "predicted"),
    }
    assert document["profile"] == {"value": "tiny", "reason": "asked for"}
    assert set(document["cpu"]) == {"model", "cores", "threads"}
    assert document["cpu"]["threads"] == 1
    assert document["products"] == {
        "fp32": {"seconds": 0.020, "gflops": pytest.approx(2.5)},
        "medium": {"seconds": 0.020, "gflops": pytest.approx(2.5)},
        "bf16": {"seconds": 0.010, "gflops": pytest.approx(5.0)},
    }
    assert document["attention"] == {"sdpa_s": 0.004, "blocks_s": 0.003, "native_s": None}
    assert (document["loss"], document["native_missing"]) == (None, None)
    assert document["block"] == {
        "eager_s": 0.04,
        "compiled_s": 0.03,
        "compile_s": 7.0,
        "load_s": 1.5,
        "import_s": 3.0,
    }
    assert document["compile_failure"] is None
    beside = {"update_s": 0.005, "contended": False}
    assert document["eager"] == {"block_s": 0.041, "head_s": 0.02} | beside
    assert document["compiled"] == {"block_s": 0.03, "head_s": 0.01} | beside
    assert set(document["plan"]) == {
        *("precision", "matmul_precision", "attention", "loss", "block_kernels", "compile"),
        *("threads", "micro_batch", "activation_checkpointing"),
    }
    assert all(set(choice) == {"value", "reason"} for choice in document["plan"].values())
    assert set(document["predicted"]) == {"tokens_per_s", "step_s"}
    assert document["predicted"]["tokens_per_s"] == pytest.approx(
        256 / document["predicted"]["step_s"]
    )
    assert "timing products…" in outcome.err
    assert "compiling one block…" in outcome.err


@pytest.mark.usefixtures("invented")
def test_tables(llmtrain: Command) -> None:
    outcome = llmtrain(*BENCH, "--set", "train.steps=1000000000")

    assert outcome.code == 0
    assert "\x1b" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 160
    rows = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert rows[0] == "profile tiny: asked for"
    assert "products, fp32 20.0 ms 2.5" in rows
    assert "products, bf16 10.0 ms 5.0 chosen" in rows
    assert "attention, torch's kernel 4.0 ms" in rows
    assert "attention, products over blocks 3.0 ms chosen" in rows
    assert "one block, eager 40.0 ms" in rows
    assert "one block, compiled 30.0 ms chosen" in rows
    assert "compiling one block 7.0 s" in rows
    assert "loading what was compiled 1.5 s" in rows
    assert "importing the compiler 3.0 s" in rows
    assert "eager step: a block 41.0 ms" in rows
    assert "compiled step: a block 30.0 ms chosen" in rows
    assert "compiled step: head and loss 10.0 ms chosen" in rows
    assert "compiled step: optimizer 5.0 ms chosen" in rows
    assert any(row.startswith("precision bf16 faster than fp32: bf16 10.0 ms") for row in rows)
    assert rows[-1].startswith("predicted: ")
    assert "tokens/s" in rows[-1]
    assert "timing" not in outcome.out


@pytest.mark.usefixtures("invented")
def test_native_kernels_are_rows(llmtrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = replace(ATTENTION, native_s=0.001)
    monkeypatch.setattr(kernel_probes, "unsuitable", lambda *_: None)
    monkeypatch.setattr(kernel_probes, "load_kernels", lambda *_, **__: Choice(True, "there"))
    monkeypatch.setattr(kernel_probes, "time_attention", lambda *_: attention)
    monkeypatch.setattr(kernel_probes, "time_loss", lambda *_: LossTimes(0.020, 0.010))

    outcome = llmtrain(*BENCH, "--set", "train.steps=1000000000")

    rows = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "attention, products over blocks 3.0 ms" in rows
    assert "attention, native kernel 1.0 ms chosen" in rows
    assert "loss, in chunks 20.0 ms" in rows
    assert "loss, native kernel 10.0 ms chosen" in rows
    short = llmtrain(*BENCH, "--set", "train.steps=1", "--json").document
    assert short["loss"] == {"chunks_s": 0.020, "native_s": 0.010}
    assert short["plan"]["attention"]["value"] == "blocks"
    assert short["plan"]["loss"]["value"] == "chunks"


@pytest.mark.usefixtures("invented")
def test_quiet_shows_results_alone(llmtrain: Command) -> None:
    outcome = llmtrain(*BENCH, "-q")
    assert (outcome.code, outcome.err) == (0, "")
    assert "predicted: " in outcome.out


@pytest.mark.usefixtures("invented")
def test_next_plan_uses_the_times(llmtrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured_again(*_: Any, **__: Any) -> None:
        pytest.fail("measured again")

    shown = llmtrain(*BENCH, "--json").document["plan"]
    for name in ("time_matmuls", "time_attention", "time_block"):
        monkeypatch.setattr(kernel_probes, name, measured_again)

    short = llmtrain("device", "info", "-p", "tiny.yaml", "--json").document["plan"]
    assert {name: short[name] | {"origin": None} for name in shown} == {
        name: choice | {"origin": None} for name, choice in shown.items()
    }
    long = llmtrain(
        *("train", "-p", "tiny.yaml", "--set", "train.steps=1000000000"), "--dry-run", "--json"
    ).document["plan"]
    assert "30 ms against 40 ms" in long["compile"]["reason"]


@pytest.mark.usefixtures("invented")
def test_no_compile_measures_no_block(llmtrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_probes, "time_block", lambda *_, **__: pytest.fail("compiled"))

    outcome = llmtrain(*BENCH, "--no-compile", "--json")

    assert outcome.code == 0
    assert outcome.document["block"] is None
    assert outcome.document["compiled"] is None
    assert outcome.document["predicted"]["step_s"] > 2 * 0.041  # eager
    assert "compiling" not in outcome.err
    long = ("--set", "train.steps=1000000000")  # which would be compiled
    assert "predicted: unknown" in llmtrain(*BENCH, *long, "--no-compile").out


@pytest.mark.usefixtures("invented")
def test_failure_to_compile_is_one_line(llmtrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> BlockTimes:
        raise CompileError("g++: fatal error: no space left")

    monkeypatch.setattr(kernel_probes, "time_block", fail)

    outcome = llmtrain(*BENCH, "--json")

    assert outcome.code == 0
    assert outcome.document["compile_failure"] == "g++: fatal error: no space left"
    assert (outcome.document["block"], outcome.document["compiled"]) == (None, None)
    assert outcome.document["predicted"]["step_s"] > 2 * 0.041  # eager
    (line,) = [line for line in outcome.err.splitlines() if "g++" in line]
    assert line == "warning: a block cannot be compiled: g++: fatal error: no space left"


@pytest.mark.usefixtures("invented")
def test_gpu_is_refused(llmtrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Accelerator("cuda", 0, "H100", 80 << 30, supports_bf16=True)
    facts = replace(request.read_facts(), accelerators=(gpu,))
    monkeypatch.setattr(request, "read_facts", lambda **_: facts)

    refused = llmtrain("device", "bench")
    assert (refused.code, refused.out) == (2, "")
    assert "only the CPU is measured" in refused.err
    assert refused.err.splitlines()[-1] == "hint: --force-cpu"

    taken = llmtrain("device", "bench", "--force-cpu", "--json")
    assert taken.code == 0
    assert taken.document["profile"]["value"].startswith("cpu-")  # not the GPU's


@pytest.mark.usefixtures("native_kernels")
def test_really_measured(llmtrain: Command, place: Path) -> None:
    outcome = llmtrain(*BENCH, "--no-compile", "--set", "device.precision=bf16", "--json")

    assert outcome.code == 0
    assert outcome.document["attention"]["sdpa_s"] > 0
    assert all(product["gflops"] > 0 for product in outcome.document["products"].values())
    kept = [json.loads(path.read_text()) for path in (place / "cache" / "probe").iterdir()]
    parts = {f"step: {part}" for part in ("block", "head", "update")}
    assert {document["key"]["what"] for document in kept} == {
        *("products", "attention", "loss"),
        *parts,
    }
    assert outcome.document["attention"]["native_s"] > 0


@pytest.mark.slow
def test_really_compiled(process: ProcessCommand, place: Path) -> None:
    if read_facts().cxx_compiler is None:
        pytest.skip("needs a C++ compiler")

    done = process(*BENCH, "--force-cpu", "--json")

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["compile_failure"] is None
    assert document["predicted"]["tokens_per_s"] > 0
    kept = [json.loads(path.read_text()) for path in (place / "cache" / "probe").iterdir()]
    (block,) = [d["times"] for d in kept if d["key"]["what"] == "block"]
    assert document["block"].items() <= block.items()
