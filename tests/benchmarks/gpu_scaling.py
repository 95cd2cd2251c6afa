"""How much faster is training on 1, 2, 4 and 8 GPUs of a machine, replicated and sharded?

Each case is trained by as many ranks as it has GPUs, on random tokens in memory, without
evaluations and checkpoints: what is timed are steps. Cases that the machine has no GPUs for, or for
which no time is left, are named and left out. One line of JSON a case, then a table.

    python -m tests.benchmarks.gpu_scaling                      # every case, within nine minutes
    python -m tests.benchmarks.gpu_scaling --gpus 2 --cases large-shard
    python -m tests.benchmarks.gpu_scaling --cases tiny --device cpu --gpus 1,2   # over gloo
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmtrain.files import LAUNCHED_VARIABLE
from llmtrain.machine.startup import prepare_for_torch
from llmtrain.train.distributed.failures import open_store, rank_environment

# Dense bf16 products, by NVIDIA's data sheets.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
# Of 7B parameters neither weights, gradients, DDP's buckets nor optimizer fit a GPU of 141 GB.
_HUGE = {
    "model.num_layers": 32,
    "model.hidden_size": 4096,
    "model.intermediate_size": 12288,
    "model.num_heads": 32,
    "optim.name": "adamw",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A training to time."""

    name: str
    profile: str
    sharding: str
    tokens_per_gpu: int  # of a step
    steps: int
    expected_s: float  # with starting and compiling, at most
    settings: dict[str, Any]


CASES = (
    Case("tiny", "cpu-tiny", "replicate", 4096, 12, 60, {}),
    Case("tiny-shard", "cpu-tiny", "shard", 4096, 12, 60, {}),
    Case("small", "gpu-small", "replicate", 262144, 16, 60, {}),
    Case("large", "gpu-large", "replicate", 65536, 12, 80, {}),
    Case("large-shard", "gpu-large", "shard", 65536, 12, 90, {}),
    Case("huge", "gpu-large", "auto", 32768, 6, 150, _HUGE),
)
_DEFAULT = ("small", "large", "large-shard")


def main() -> None:
    """Time the cases."""
    options = _options()
    prepare_for_torch()  # the ranks, by their environment
    names = options.cases.split(",")
    unknown = sorted(set(names) - {case.name for case in CASES})
    if unknown:
        sys.exit(f"no case {unknown[0]}; there are {', '.join(case.name for case in CASES)}")
    counts = [int(count) for count in options.gpus.split(",")]
    found = list(measured([c for c in CASES if c.name in names], counts, options))
    for line in table(found):
        sys.stdout.write(f"{line}\n")


def measured(
    cases: Sequence[Case], counts: Sequence[int], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield what each case came to, at each number of GPUs; each is printed at once."""
    started_s, there = time.monotonic(), _gpus() if options.device == "cuda" else max(counts)
    for case in cases:
        for count in counts:
            left_s = options.limit - (time.monotonic() - started_s)
            result: dict[str, Any] = {"case": case.name, "gpus": count}
            if count > there:
                result |= {"left_out": f"the machine has {there}"}
            elif left_s < case.expected_s:
                result |= {"left_out": f"{left_s:.0f} s are left"}
            elif case.sharding == "shard" and count == 1:
                continue
            else:
                result |= trained(case, count, options.device, left_s)
            sys.stdout.write(f"{json.dumps(result)}\n")
            sys.stdout.flush()
            yield result


def trained(case: Case, ranks: int, device: str, limit_s: float) -> dict[str, Any]:
    """Train a case in `ranks` processes; return what rank 0 found, or why there is nothing."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "case.json"
        file.write_text(json.dumps(asdict(case) | {"device": device}))
        _store, port = open_store()
        command = [sys.executable, "-m", "tests.benchmarks.gpu_scaling_rank", str(file)]
        processes = [
            subprocess.Popen(
                command,
                env=os.environ | rank_environment(rank, ranks, port) | {LAUNCHED_VARIABLE: "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            outputs = [process.communicate(timeout=limit_s) for process in processes]
        except subprocess.TimeoutExpired:
            return {"failed": f"more than {limit_s:.0f} s"}
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for process, (_, err) in zip(processes, outputs, strict=True):
            if process.returncode:
                return {"failed": err.strip()[-600:]}
        found: dict[str, Any] = json.loads(outputs[0][0].strip().splitlines()[-1])
        return found


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a table in Markdown: rates, beside as many times that of one GPU, and memory."""
    yield "| case | GPUs | sharding | tokens/s | of linear | MFU | memory, predicted | measured |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for result in found:
        if "tokens_per_s" not in result:
            continue
        one = _rate_of_one(result["case"], found)
        share = "" if one is None else f"{result['tokens_per_s'] / result['gpus'] / one:.1%}"
        mfu = "" if result["mfu"] is None else f"{result['mfu']:.1%}"
        predicted, peak = (result[name] / 2**30 for name in ("predicted_bytes", "peak_bytes"))
        yield (
            f"| {result['case']} | {result['gpus']} | {result['sharding']} | "
            f"{result['tokens_per_s']:,.0f} | {share} | {mfu} | {predicted:.2f} GiB | "
            f"{peak:.2f} GiB ({predicted / peak - 1:+.1%}) |"
        )


def _rate_of_one(name: str, found: Sequence[dict[str, Any]]) -> float | None:
    """Return the rate of one GPU, of the same model without sharding."""
    same = {name, name.removesuffix("-shard")}
    ones = [r for r in found if r["case"] in same and r["gpus"] == 1 and "tokens_per_s" in r]
    return ones[0]["tokens_per_s"] if ones else None


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gpus", default="1,2,4,8", help="numbers of ranks, in turn")
    parser.add_argument("--cases", default=",".join(_DEFAULT))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--limit", type=float, default=530.0, metavar="SECONDS")
    return parser.parse_args()


if __name__ == "__main__":
    main()
