"""One rank of `gpu_scaling`: train a case on random tokens; rank 0 prints what it found."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.engine.workload import workload_of
from llmtrain.machine.gpu_memory import read_accelerator_memory
from llmtrain.machine.memory_usage import read_process_memory
from llmtrain.machine.probe import read_facts
from llmtrain.plan.planner import make_plan, predict
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from llmtrain.profile.setting import Setting
from llmtrain.train.build import build_run
from llmtrain.train.distributed.world import World, world_from_environment
from llmtrain.train.loop import Run, training_steps
from llmtrain.train.readers import TrainTokens
from tests.benchmarks.gpu_scaling import PEAK_FLOPS

_UNTIMED_STEPS = 4  # that compile, and fill the allocator


def random_tokens(count: int, vocab_size: int) -> TokenStream:
    """Return so many random tokens, in a file that is gone once they are closed."""
    ids = np.random.default_rng(0).integers(0, vocab_size, count, dtype=np.uint16)
    with TemporaryDirectory() as directory:
        file = Path(directory) / "tokens"
        ids.tofile(file)
        return TokenStream([file], np.dtype(np.uint16), vocab_size)


def main() -> None:
    """Train the case of the file that is named."""
    case = json.loads(Path(sys.argv[1]).read_text())
    world = world_from_environment()
    profile = profile_of(case, world)
    is_cuda = case["device"] == "cuda"
    facts = read_facts(cuda_index=world.local_rank if is_cuda else 0, tries_gpus=is_cuda)
    if not is_cuda:
        facts = replace(facts, accelerators=())
    workload = workload_of(profile, world, facts, measure=False)
    plan = make_plan(facts, profile.device, workload)
    count = (case["steps"] + 1) * workload.tokens_per_step + 1
    tokens = random_tokens(count, profile.model.vocab_size)
    with world.process_group(plan.backend.value, 120.0):
        run = build_run(profile, plan, world, TrainTokens(tokens))
        step_s = timed_steps(run, case["steps"])
        peak = run.all_reduce([peak_bytes(run) if rank == world.rank else 0 for rank in _of(world)])
    if world.is_main:
        rate = workload.tokens_per_step / statistics.median(step_s)
        device = facts.accelerators[0].name if is_cuda else "cpu"
        flops = next((f for name, f in PEAK_FLOPS.items() if name in device), None)
        found = {
            "device": device,
            "torch": str(torch.__version__),
            "sharding": plan.sharding.value,
            "reason": plan.sharding.reason,
            "plan": {name: choice.value for name, choice in plan.choices()},
            "tokens_per_s": rate,
            "step_s": step_s,
            "mfu": flops and rate / world.size * workload.flops_per_token / flops,
            "predicted_bytes": predict(workload, plan).measured_on(plan.device.value),
            "peak_bytes": max(peak) if is_cuda else sum(peak),
        }
        sys.stdout.write(f"{json.dumps(found)}\n")


def profile_of(case: dict[str, Any], world: World) -> Profile:
    """Return the case's profile, with the tokens of a step for the ranks that there are."""
    settings: dict[str, Any] = case["settings"] | {
        "train.tokens_per_step": case["tokens_per_gpu"] * world.size,
        "train.steps": case["steps"],
        "device.kind": case["device"],
        "device.processes": world.size,
        "device.sharding": case["sharding"],
    }
    flags = {name: Setting(value, "the case") for name, value in settings.items()}
    return load_profile(case["profile"], environment={}, flags=flags).profile


def timed_steps(run: Run, steps: int) -> list[float]:
    """Train `steps` steps; return the seconds of those after the first few."""
    stepping, found = training_steps(run), []
    for number in range(steps):
        started_s = time.monotonic()
        next(stepping)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        if number >= _UNTIMED_STEPS:
            found.append(time.monotonic() - started_s)
    return found


def peak_bytes(run: Run) -> int:
    """Return this rank's peak, as a run measures it."""
    if run.device.type == "cpu":
        return read_process_memory().peak_resident_bytes
    readings = read_accelerator_memory(run.device.index)
    return sum(r.peak_reserved_bytes or r.reserved_bytes or 0 for r in readings)


def _of(world: World) -> range:
    return range(world.size)


if __name__ == "__main__":
    main()
