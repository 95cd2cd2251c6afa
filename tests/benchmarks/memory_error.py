"""How far the predicted peak memory is from the measured one.

    python -m tests.benchmarks.memory_error memory.jsonl              # all; may be interrupted
    python -m tests.benchmarks.memory_error memory.jsonl --only tiny  # those whose name has it
    python -m tests.benchmarks.memory_error memory.jsonl --table      # of what is there

Each case is a training of a few steps in a process of its own, with evaluation, samples and a
checkpoint, by a tokenizer that all of them share. A line of JSON a case; those that a file has are
not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.checkout import ROOT
from tests.programs import program_parser

_STEPS = 5
_ALWAYS = {
    "train.log_every_steps": 1,
    "eval.tokens": 16384,
    "eval.every_steps": 3,
    "eval.sample_every_steps": 3,
    "eval.sample_tokens": 16,
    "checkpoint.keep_best": False,  # of the largest model one takes 12 GiB of the disk
    "checkpoint.keep_last": 1,
}
_VOCABULARY = 4096
_TEXT = str(ROOT / "llmtrain")

Case = tuple[str, dict[str, Any]]


def cases(device: str) -> list[Case]:
    """Profile and settings of each: one thing at a time differs, then several."""
    return _gpu_cases() if device == "cuda" else _cpu_cases()


def _cpu_cases() -> list[Case]:
    tiny, mini, small, medium = ("cpu-tiny", "cpu-mini", "cpu-small", "cpu-medium")
    by_torch = {"device.block_kernels": "torch", "device.loss": "chunks"}
    eager, compiled = ({"device.compile": value} | by_torch for value in (False, True))
    fp32, many = {"device.precision": "fp32"}, {"model.vocab_size": 32000}
    native = {"device.compile": False, "device.block_kernels": "native", "device.loss": "native"}

    def micro(number: int, tokens_per_step: int) -> dict[str, Any]:
        return {"train.micro_batch": number, "train.tokens_per_step": tokens_per_step}

    def recomputing(mode: str) -> dict[str, Any]:
        return {"device.activation_checkpointing": mode}

    return [
        (tiny, eager | micro(1, 1024)),
        (tiny, eager | micro(4, 1024)),
        (tiny, eager | micro(16, 4096)),
        (tiny, eager | micro(64, 16384)),
        (tiny, eager | micro(16, 16384)),
        (tiny, eager | fp32 | micro(4, 1024)),
        (tiny, eager | fp32 | micro(16, 4096)),
        (tiny, compiled | micro(16, 4096)),
        (tiny, compiled | micro(32, 8192)),
        (tiny, compiled | fp32 | micro(16, 4096)),
        (tiny, eager | micro(16, 4096) | recomputing("selective")),
        (tiny, eager | micro(16, 4096) | recomputing("full")),
        (tiny, eager | micro(16, 4096) | {"model.tie_embeddings": False}),
        (tiny, eager | micro(16, 4096) | {"model.vocab_size": 32000}),
        (
            tiny,
            eager | micro(16, 4096) | {"model.vocab_size": 32000, "model.tie_embeddings": False},
        ),
        (tiny, eager | micro(4, 4096) | {"model.context": 1024}),
        (tiny, eager | micro(16, 4096) | {"optim.name": "adamw"}),
        (mini, eager | micro(8, 4096)),
        (mini, compiled | micro(8, 4096)),
        (mini, compiled | micro(2, 1024)),
        (mini, compiled | micro(8, 4096) | {"optim.name": "adamw"}),
        (small, compiled | micro(1, 512)),
        (small, compiled | micro(8, 4096)),
        (small, compiled | micro(4, 2048) | fp32),
        (small, eager | micro(2, 1024)),
        (small, eager | micro(4, 2048) | recomputing("full")),
        (small, compiled | micro(2, 2048) | many | {"model.context": 1024}),
        (medium, compiled | micro(1, 1024)),
        (medium, eager | micro(1, 1024) | recomputing("full")),
        (tiny, native | micro(4, 1024)),
        (tiny, native | micro(16, 4096)),
        (tiny, native | micro(16, 16384)),
        (tiny, native | micro(16, 4096) | many),
        (tiny, native | micro(4, 4096) | {"model.context": 1024}),
        (mini, native | micro(8, 4096)),
        (small, native | micro(2, 1024)),
        (small, native | micro(8, 4096)),
        (small, native | micro(8, 8192) | {"optim.name": "adamw"} | many),
        (small, native | micro(4, 2048) | recomputing("full")),
        (medium, native | micro(1, 1024)),
    ]


def _gpu_cases() -> list[Case]:
    small, medium, large = ("gpu-small", "gpu-medium", "gpu-large")
    eager, compiled = {"device.compile": False}, {"device.compile": True}

    def micro(number: int, context: int = 1024, times: int = 1) -> dict[str, Any]:
        step = number * context * times
        sizes = {"train.micro_batch": number, "train.tokens_per_step": step}
        return sizes if context == 1024 else sizes | {"model.context": context}

    def recomputing(mode: str) -> dict[str, Any]:
        return {"device.activation_checkpointing": mode}

    return [
        *((small, eager | micro(n)) for n in (1, 8, 32)),
        *((small, compiled | micro(n)) for n in (1, 8, 64)),
        *((medium, how | micro(n)) for how in (eager, compiled) for n in (2, 16)),
        *((large, how | micro(n, 2048)) for how in (eager, compiled) for n in (1, 4)),
        (small, eager | micro(8) | {"optim.name": "adamw"}),
        (medium, compiled | micro(8) | {"optim.name": "adamw"}),
        (small, eager | micro(8) | {"device.precision": "fp32"}),
        (small, compiled | micro(8) | {"device.precision": "fp32"}),
        (small, compiled | micro(16, times=2)),
        (medium, eager | micro(8, times=2)),
        (large, compiled | micro(2, 2048, times=2)),
        (medium, eager | micro(32) | recomputing("full")),
        (medium, eager | micro(16) | recomputing("selective")),
        (medium, compiled | micro(16) | recomputing("selective")),
        (large, compiled | micro(8, 2048) | recomputing("full")),
        (small, compiled | micro(4, 4096) | {"data.validation_fraction": 0.05}),
        (small, eager | micro(16) | {"model.vocab_size": 8192}),
        (small, compiled | micro(8) | {"model.tie_embeddings": False}),
        # Held back: nothing of the prediction was chosen after these.
        (medium, compiled | micro(6, 2048)),
        (small, eager | micro(8) | {"model.num_kv_heads": 2}),
        (small, compiled | micro(8) | {"model.qk_norm": False}),
        (large, eager | micro(2, 2048) | {"optim.name": "adamw"}),
        ("mps-small", compiled | micro(16)),
        ("cpu-small", eager | micro(32, 512)),
    ]


def main(arguments: Sequence[str]) -> int:
    """The cases that are not there yet are run, then the table is printed."""
    values = _parser().parse_args(arguments)
    if not values.table:
        done = {case_name(line["profile"], line["settings"]) for line in lines(values.results)}
        left = [
            (profile, settings)
            for profile, settings in cases(values.device)
            if (name := case_name(profile, settings)) not in done and values.only in name
        ]
        with tempfile.TemporaryDirectory(prefix="llmtrain-memory-") as scratch:
            _measure(left, values, Path(scratch))
    sys.stdout.writelines(_table(values.results))
    return 0


def _measure(left: Sequence[Case], values: argparse.Namespace, scratch: Path) -> None:
    """A line for each is in the file as soon as it is known."""
    tokenizer = scratch / "tokenizer"
    if left:
        made = ("--data", _TEXT, "--vocab-size", _VOCABULARY, "--out", tokenizer)
        _llmtrain("tokenizer", "train", *made)
    with ThreadPoolExecutor(values.at_once) as pool:
        measured = [
            pool.submit(_measured, *case, values.device, tokenizer, scratch / f"run-{number}")
            for number, case in enumerate(left)
        ]
        for done in as_completed(measured):
            with values.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done.result()) + "\n")


def _measured(
    profile: str, settings: dict[str, Any], device: str, tokenizer: Path, run: Path
) -> dict[str, Any]:
    """Return the peak of a run on a machine that has been measured: the second of two."""
    options = [f"--set={name}={value}" for name, value in {**_ALWAYS, **settings}.items()]
    for _ in range(2):
        document = _llmtrain(
            *("train", "--profile", profile, "--device", device, "--steps", _STEPS, "--out", run),
            *("--data", _TEXT, "--tokenizer", tokenizer, *options, "--quiet"),
        )
        shutil.rmtree(run)
    return {
        "profile": profile,
        "settings": settings,
        "device": device,
        "predicted_bytes": document["predicted"]["peak_memory_bytes"],
        "measured_bytes": document["peak_memory_bytes"],
    }


def _llmtrain(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "llmtrain", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def lines(path: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def case_name(profile: str, settings: dict[str, Any]) -> str:
    """The profile and what differs from it."""
    told = (f"{name.partition('.')[2]}={value}" for name, value in sorted(settings.items()))
    return " ".join([profile, *told])


def _table(path: Path) -> Iterator[str]:
    """Markdown, and what the errors come to: positive is more than was measured."""
    errors = []
    yield "| case | predicted | measured | error |\n| --- | --- | --- | --- |\n"
    for line in lines(path):
        predicted, measured = line["predicted_bytes"] / 2**20, line["measured_bytes"] / 2**20
        errors.append(predicted / measured - 1)
        name = case_name(line["profile"], line["settings"])
        yield f"| {name} | {predicted:.0f} MiB | {measured:.0f} MiB | {100 * errors[-1]:+.1f}% |\n"
    if errors:
        within = sum(abs(error) <= 0.05 for error in errors)
        yield (
            f"\n{len(errors)} cases: {within} within 5%, "
            f"{100 * min(errors):+.1f}% to {100 * max(errors):+.1f}%\n"
        )


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("results", type=Path, help="a file of lines of JSON, begun or not")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--at-once", type=int, default=1, help="cases, on a GPU with room for them")
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
