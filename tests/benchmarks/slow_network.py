"""Do rounds of local steps let two machines with a slow network between them train one model?

Two network namespaces of this machine stand for the two machines, with 100 Mbit/s and 20 ms between
them (`--mbit`, `--round-trip-ms`). Each has one process of one thread. Needs root.

    rate    tokens/s of one machine by itself at its share of a step, and of both: gradients
            averaged in every step, `train.sync_every`, and the same with its exchange beside the
            next steps (`train.sync_delay`); in turn, several times
    loss    validation loss after as many tokens, averaged in every step and in rounds, without the
            slow link, which changes no number

    python -m tests.benchmarks.slow_network rate --small --steps 60 --times 1
    python -m tests.benchmarks.slow_network loss --steps 300 --seeds 2
    python -m tests.benchmarks.slow_network loss --steps 300 --set optim.outer_momentum=0.8

One line of JSON a training, then a table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmtrain.train.run_directory.directory import RunDirectory
from tests.benchmarks.slow_link import Side, slow_link

_PORT = 29600
_SMALLEST_STEPS = 12  # of plain DDP, which is slow
_SMALL = (
    "model.hidden_size=128",
    "model.num_layers=4",
    "model.intermediate_size=384",
    "model.num_heads=2",
    "model.vocab_size=1024",
    "model.context=128",
    "device.precision=fp32",
    "device.compile=false",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A training to time or to judge: by how many machines, and with which settings."""

    name: str
    machines: int
    settings: tuple[str, ...]
    share: float = 1.0  # of the tokens of a step


def main() -> None:
    """Train the cases in turn."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the ranks, too
    every = f"train.sync_every={options.every}"
    rounds = [
        Case(
            f"sync_every {options.every}, {precision}",
            2,
            (every, f"train.sync_precision={precision}"),
        )
        for precision in options.precision.split(",")
    ]
    if options.delay and options.every != "auto":
        beside = (f"train.sync_delay={options.delay}",)
        rounds += [
            replace(case, name=f"{case.name}, beside {options.delay} steps", settings=settings)
            for case in rounds
            for settings in ((*case.settings, *beside),)
        ]
    with tempfile.TemporaryDirectory(prefix="llmtrain-slow-") as directory:
        if options.what == "rate":
            alone = Case("one machine", 1, (), share=0.5)
            cases = [alone, Case("gradients in every step", 2, ()), *rounds]
            found = list(_rates(cases, options, Path(directory)))
            lines = _rate_table(found)
        else:
            plain = [] if options.only_rounds else [Case("gradients in every step", 2, ())]
            found = list(_losses([*plain, *rounds], options, Path(directory)))
            lines = _loss_table(found)
    for line in lines:
        sys.stdout.write(f"{line}\n")


def _rates(
    cases: Sequence[Case], options: argparse.Namespace, directory: Path
) -> Iterator[dict[str, Any]]:
    with slow_link(options.mbit * 1e6, options.round_trip_ms / 1e3) as sides:
        for time_ in range(options.times):
            for case in cases[:: 1 if time_ % 2 == 0 else -1]:
                is_slow = case.machines == 2 and len(case.settings) == 0
                steps = max(_SMALLEST_STEPS, options.steps // 6) if is_slow else options.steps
                out = directory / f"{case.name.replace(' ', '-')}-{time_}"
                yield _told(_trained(case, sides, steps, 0, options, out))


def _losses(
    cases: Sequence[Case], options: argparse.Namespace, directory: Path
) -> Iterator[dict[str, Any]]:
    here = Side("", "127.0.0.1")
    for seed in range(options.seeds):
        for case in cases:
            out = directory / f"{case.name.replace(' ', '-')}-{seed}"
            yield _told(_trained(case, (here, here), options.steps, seed, options, out))


def _told(result: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.write(f"{json.dumps(result)}\n")
    sys.stdout.flush()
    return result


def _trained(
    case: Case,
    sides: Sequence[Side],
    steps: int,
    seed: int,
    options: argparse.Namespace,
    out: Path,
) -> dict[str, Any]:
    """Train a case; return what rank 0 says of it."""
    settings = (
        f"train.tokens_per_step={round(case.share * options.tokens_per_step)}",
        f"train.steps={steps}",
        f"train.seed={seed}",
        "device.threads=1",
        *case.settings,
        *(options.set or ()),
    )
    flags = [word for setting in settings for word in ("--set", setting)]
    command = (sys.executable, "-m", "llmtrain", "train", "--profile", options.profile, *flags)
    if options.what == "rate":
        command += ("--set", "eval.sample_every_steps=null", "--set", "eval.tokens=4096")
    ranks = [
        _start(command, side, rank, case.machines, out)
        for rank, side in enumerate(sides[: case.machines])
    ]
    try:
        outputs = [rank.communicate() for rank in ranks]
    finally:
        for each in ranks:
            each.kill()
    for rank, (_, err) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            sys.exit(f"{case.name}: {err[-2000:]}")
    result = json.loads(outputs[0][0])
    names = ("tokens_per_s", "val_loss", "steps", "seconds")
    chosen = RunDirectory(out).read_record()["plan"]["sync_every"]
    figures = {name: result[name] for name in names} | {"sync_every": chosen}
    return {"case": case.name, "seed": seed} | figures


def _start(
    command: Sequence[str], side: Side, rank: int, ranks: int, out: Path
) -> subprocess.Popen[str]:
    variables = {}
    if ranks > 1:
        address = "10.77.0.1" if side.namespace else "127.0.0.1"
        local = 1 if side.namespace else ranks
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": str(rank % local),
            "LOCAL_WORLD_SIZE": str(local),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(_PORT),
        }
    words = [*command, "--out", str(out), "--json"]
    return subprocess.Popen(
        side.command(*words) if side.namespace else words,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _rate_table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield medians, beside the summed rate of both machines."""
    by_case = _by_case(found, "tokens_per_s")
    both = 2 * statistics.median(by_case["one machine"])
    yield "| | tokens/s | of both machines' summed |"
    yield "| --- | --- | --- |"
    yield f"| twice one machine | {both:,.0f} | 100% |"
    for name, rates in by_case.items():
        if name != "one machine":
            rate = statistics.median(rates)
            yield f"| {name} | {rate:,.0f} | {rate / both:.0%} |"


def _loss_table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    by_case = _by_case(found, "val_loss")
    first = statistics.mean(next(iter(by_case.values())))
    yield "| | validation loss, mean over seeds | difference |"
    yield "| --- | --- | --- |"
    for name, losses in by_case.items():
        mean = statistics.mean(losses)
        yield f"| {name} | {mean:.4f} | {mean / first - 1:+.2%} |"


def _by_case(found: Sequence[dict[str, Any]], name: str) -> dict[str, list[float]]:
    by_case = defaultdict[str, list[float]](list)
    for result in found:
        by_case[result["case"]].append(result[name])
    return by_case


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("rate", "loss"))
    parser.add_argument("--profile", default="cpu-tiny")
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", default="30", help="of train.sync_every; auto: without a delay")
    parser.add_argument("--delay", type=int, default=10, help="of train.sync_delay; 0: without")
    parser.add_argument("--precision", default="fp32,bf16", help="of what is sent, in turn")
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--round-trip-ms", type=float, default=20.0)
    parser.add_argument("--only-rounds", action="store_true", help="not gradients in every step")
    parser.add_argument("--small", action="store_true", help="1.0M parameters, 2,048 tokens a step")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.small:
        options.tokens_per_step = 2048
        options.set = [*_SMALL, *(options.set or ())]
    return options


if __name__ == "__main__":
    main()
