"""Damage to the files of a checkpoint: is any of it loaded?

    python -m tests.faults.damage --mutations 1000

Each mutation flips a bit, cuts a file, zeroes or swaps pages, adds bytes or takes a file away, in a
file drawn at random. Detected is what does not load; harmless what loads to the same weights,
optimizer state and position as before; without its optimizer file, weights only. Prints them by
kind as a line of JSON; exit code 1 where
something else was loaded, or another error than the program's own came out.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from llmtrain.errors import LlmtrainError
from llmtrain.train.checkpoint.format import Checkpoint, load_checkpoint
from llmtrain.train.checkpoint.parts import OPTIMIZER
from llmtrain.train.checkpoint.writing import save_checkpoint
from tests.faults.saves import small_checkpoint

_PAGE_BYTES = 4096
Mutation = Callable[[bytearray, random.Random], bytearray | None]


def flip_a_bit(data: bytearray, draw: random.Random) -> bytearray:
    """One bit is the other."""
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def cut(data: bytearray, draw: random.Random) -> bytearray:
    """The end is missing."""
    return data[: draw.randrange(len(data))]


def zero_a_page(data: bytearray, draw: random.Random) -> bytearray:
    """A page was never written."""
    start = draw.randrange(len(data)) // _PAGE_BYTES * _PAGE_BYTES
    end = min(len(data), start + _PAGE_BYTES)
    data[start:end] = bytes(end - start)
    return data


def swap_pages(data: bytearray, draw: random.Random) -> bytearray:
    """Two pages lie in each other's place."""
    pages = [data[i : i + _PAGE_BYTES] for i in range(0, len(data), _PAGE_BYTES)]
    a, b = draw.randrange(len(pages)), draw.randrange(len(pages))
    pages[a], pages[b] = pages[b], pages[a]
    return bytearray(b"".join(pages))


def add_bytes(data: bytearray, draw: random.Random) -> bytearray:
    """Something follows the end."""
    return data + draw.randbytes(draw.randint(1, 64))


def remove(data: bytearray, draw: random.Random) -> None:
    """The file is gone."""


_MUTATIONS: tuple[Mutation, ...] = (
    *(flip_a_bit, flip_a_bit, flip_a_bit, cut, zero_a_page, zero_a_page),
    *(swap_pages, add_bytes, remove),
)


def main(arguments: Sequence[str]) -> int:
    """So many mutations, each of a checkpoint that was whole."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.damage")
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    values = parser.parse_args(arguments)
    ends: Counter[str] = Counter()
    draw = random.Random(values.seed)
    with tempfile.TemporaryDirectory(prefix="llmtrain-damage-") as scratch:
        whole = save_checkpoint(Path(scratch), small_checkpoint(1))
        original = load_checkpoint(whole)
        for _ in range(values.mutations):
            mutation = draw.choice(_MUTATIONS)
            ends[f"{mutation.__name__}: {_end(whole, original, mutation, draw)}"] += 1
    sys.stdout.write(json.dumps(dict(sorted(ends.items()))) + "\n")
    return 1 if any("BROKEN" in end for end in ends) else 0


def _end(whole: Path, original: Checkpoint, mutation: Mutation, draw: random.Random) -> str:
    place = whole.with_name("step-00000099")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    file = draw.choice(sorted(place.iterdir()))
    mutated = mutation(bytearray(file.read_bytes()), draw)
    if mutated is None:
        file.unlink()
    else:
        file.write_bytes(mutated)
    try:
        found = load_checkpoint(place)
    except LlmtrainError:
        return "detected"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
        return f"BROKEN: {type(error).__name__} from {file.name}"
    if mutated is None and file.name == OPTIMIZER and _is_the_same(found, _weights_of(original)):
        return "weights only"  # which a run continues from with a fresh optimizer, and says so
    return "harmless" if _is_the_same(found, original) else f"BROKEN: {file.name} was loaded"


def _weights_of(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, optimizer={})


def _is_the_same(a: Checkpoint, b: Checkpoint) -> bool:
    tensors = ((a.weights, b.weights), (a.optimizer, b.optimizer))
    return (
        a.state == b.state
        and a.shape == b.shape
        and a.tokenizer.fingerprint == b.tokenizer.fingerprint
        and all(x.keys() == y.keys() for x, y in tensors)
        and all(torch.equal(x[name], y[name]) for x, y in tensors for name in y)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
