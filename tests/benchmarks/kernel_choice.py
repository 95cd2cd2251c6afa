"""How often repeated measurements lead to each choice: `python -m tests.benchmarks.kernel_choice`.

The law is that a machine computes the same request in the same way each time. Every repetition
times products, kernels and the parts of an eager step anew, as a run with a fresh cache does, and
makes the decisions of a plan; half of them beside two busy loops. Native kernels are compiled once,
for a cache of its own. Exits 1 where a decision came out in more than one way.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from llmtrain.machine.startup import prepare_for_torch

prepare_for_torch()

from llmtrain.machine.facts import CpuTimes, Facts, StepTimes  # noqa: E402
from llmtrain.machine.probe import read_facts  # noqa: E402
from llmtrain.plan.cpu_benchmarks import measured_eager_step  # noqa: E402
from llmtrain.plan.planner import make_plan  # noqa: E402
from llmtrain.plan.workload import Workload  # noqa: E402
from llmtrain.profile.load import load_profile  # noqa: E402
from llmtrain.profile.schema import Profile  # noqa: E402
from llmtrain.profile.setting import Setting  # noqa: E402
from llmtrain.profile.shape import shape_of  # noqa: E402

_DECISIONS = ("precision", "matmul_precision", "attention", "loss", "block_kernels", "compile")


def main() -> int:
    """Print the counts; return 1 where repetitions disagree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profiles", nargs="+", default=["cpu-tiny", "cpu-mini"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in options.set)
    flags = {key: Setting(value, "--set") for key, value in settings.items()}
    differ = False
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LLMTRAIN_CACHE_DIR"] = cache
        for name in options.profiles:
            profile = load_profile(name, environment={}, flags=flags).profile
            differ |= len(repeat(name, profile, options.repetitions)) > 1
    return 1 if differ else 0


def repeat(name: str, profile: Profile, repetitions: int) -> Counter[tuple[str, ...]]:
    """Decide so often without and beside a load; print and return how often each way came out."""
    facts = read_facts(tries_gpus=False)
    found: Counter[tuple[str, ...]] = Counter()
    for loops in (0, 2):
        with busy_loops(loops):
            for _ in range(repetitions):
                decided, ratios = decide(profile, facts)
                found[decided] += 1
                say(f"{name}, {loops} busy loops: {' '.join(decided)}; {ratios}")
    for decided, count in found.most_common():
        named = zip(_DECISIONS, decided, strict=True)
        say(f"{name}: {count:>3} × {', '.join(map('='.join, named))}")
    return found


def decide(profile: Profile, facts: Facts) -> tuple[tuple[str, ...], str]:
    """Measure, and return the decisions and the ratios that they rest on."""
    shape, device = shape_of(profile.model), profile.device
    workload = Workload(shape, tokens_per_step=16 * shape.context)
    times = measured_eager_step(facts, device, workload, announce=lambda line: None, measure="all")
    plan = make_plan(facts, device, workload, times)
    return tuple(str(getattr(plan, name).value) for name in _DECISIONS), ratios_of(times)


def ratios_of(times: CpuTimes) -> str:
    """Return the ratios that decisions rest on, in words."""
    products, attention, loss = times.matmul, times.attention, times.loss
    found = {
        "bf16/fp32": products.bf16_s / products.fp32_s,
        "medium/fp32": products.medium_s / products.fp32_s,
    }
    if attention is not None:
        found["blocks/sdpa"] = attention.blocks_s / attention.sdpa_s
        if attention.native_s is not None:
            least_s = min(attention.blocks_s, attention.sdpa_s)
            found["native attention"] = attention.native_s / least_s
    if loss is not None:
        found["native loss"] = loss.native_s / loss.chunks_s
    if times.native is not None and times.eager is not None:
        found["native block"] = block_s(times.native) / block_s(times.eager)
    rate = f"{products.fastest_flops_per_s / 1e9:.0f} GFLOP/s"
    return ", ".join([*(f"{name} {ratio:.2f}" for name, ratio in found.items()), rate])


def block_s(times: StepTimes) -> float:
    """Return the CPU time that plans compare, of a block and sequence."""
    return times.by_cpu().block.seconds / times.micro_batch


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep `count` cores busy within the block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
