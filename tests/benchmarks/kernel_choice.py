"""How often repeated measurements lead to each choice: `python -m tests.benchmarks.kernel_choice`.

The law is that a machine computes the same request in the same way each time. Every repetition
measures products and attention anew, without the cache, and makes the decisions of a plan; half
of them beside two busy loops. Exits 1 where a decision came out in more than one way. About ten
minutes for two shapes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from llmtrain.machine.startup import prepare_for_torch

prepare_for_torch()

from llmtrain.machine.facts import CpuTimes, Facts  # noqa: E402
from llmtrain.machine.probe import read_facts  # noqa: E402
from llmtrain.plan.kernel_probes import (  # noqa: E402
    attention_probe,
    cpu_threads,
    products_probe,
)
from llmtrain.plan.planner import make_plan  # noqa: E402
from llmtrain.plan.workload import Workload  # noqa: E402
from llmtrain.profile.load import load_profile  # noqa: E402
from llmtrain.profile.schema import Profile  # noqa: E402
from llmtrain.profile.setting import Setting  # noqa: E402
from llmtrain.profile.shape import shape_of  # noqa: E402

_DECISIONS = ("precision", "matmul_precision", "attention", "compile")


def main() -> int:
    """Print the counts; return 1 where repetitions disagree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profiles", nargs="+", default=["cpu-tiny", "cpu-mini"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    facts = read_facts(tries_gpus=False)
    settings = dict(setting.split("=", 1) for setting in options.set)
    flags = {key: Setting(value, "--set") for key, value in settings.items()}
    differ = False
    for name in options.profiles:
        profile = load_profile(name, environment={}, flags=flags).profile
        found: Counter[tuple[str, ...]] = Counter()
        for loops in (0, 2):
            with busy_loops(loops):
                for _ in range(options.repetitions):
                    decided, ratios = decide(profile, facts)
                    found[decided] += 1
                    say(f"{name}, {loops} busy loops: {' '.join(decided)}; {ratios}")
        for decided, count in found.most_common():
            named = zip(_DECISIONS, decided, strict=True)
            say(f"{name}: {count:>3} × {', '.join(map('='.join, named))}")
        differ = differ or len(found) > 1
    return 1 if differ else 0


def decide(profile: Profile, facts: Facts) -> tuple[tuple[str, ...], str]:
    """Measure, and return the decisions and the ratios that they rest on."""
    shape, device = shape_of(profile.model), profile.device
    workload = Workload(shape, tokens_per_step=16 * shape.context)
    products = products_probe(facts, shape, cpu_threads(facts, device, workload)).measure()
    attention = attention_probe(facts, device, workload, products).measure()
    plan = make_plan(facts, device, workload, CpuTimes(products, attention))
    ratios = (
        f"bf16/fp32 {products.bf16_s / products.fp32_s:.2f}, "
        f"medium/fp32 {products.medium_s / products.fp32_s:.2f}, "
        f"blocks/sdpa {attention.blocks_s / attention.sdpa_s:.2f}, "
        f"{products.fastest_flops_per_s / 1e9:.0f} GFLOP/s"
    )
    return tuple(str(getattr(plan, name).value) for name in _DECISIONS), ratios


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
