"""How long the matrices of one token take: in bf16, in int8, and in the compiled step.

One text, a model of a profile with random weights, all in turn, so that other work on the machine
disturbs all alike. Threads wait for each other within a token, so that on a busy machine most
tokens take as long as the scheduler likes: the fastest, and the fastest twentieth, are undisturbed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.generate.native.library import load_decode_step
from llmtrain.machine.probe import read_facts
from llmtrain.model.decoder import Decoder
from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import shape_of

_LARGEST = 127  # of int8, symmetric


def main() -> None:
    """Print a row of Markdown for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="cpu-small")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Decoder(shape_of(load_profile(options.profile).profile.model)).eval()
    model.initialise(0)
    times_s: dict[str, list[float]] = {}
    ways = _ways(model)
    with torch.inference_mode():
        for call in ways.values():
            call()
        for _ in range(options.steps):
            for name, call in ways.items():
                started_s = time.perf_counter()
                call()
                times_s.setdefault(name, []).append(time.perf_counter() - started_s)
    sys.stdout.write("| | fastest, ms | fastest twentieth, ms |\n| --- | --- | --- |\n")
    for name, each_s in times_s.items():
        each_s.sort()
        twentieth_s = each_s[len(each_s) // 20]
        sys.stdout.write(f"| {name} | {1e3 * each_s[0]:.2f} | {1e3 * twentieth_s:.2f} |\n")


def _ways(model: Decoder) -> dict[str, Callable[[], object]]:
    """Return what computes the matrices of one token, by name."""
    decoder = CachedDecoder(model, torch.bfloat16)
    weights = decoder._weights
    layers = [
        matrix
        for layer in weights.layers
        for matrix in (*layer.query_key_value, layer.output, *layer.gate_up, layer.down)
    ]
    matrices = [*layers, weights.head]
    inputs = {size: torch.randn(1, size).bfloat16() for size in {m.shape[1] for m in matrices}}
    rounded = [_rounded(matrix) for matrix in matrices]
    ways: dict[str, Callable[[], object]] = {
        "bf16 products, torch": lambda: [F.linear(inputs[m.shape[1]], m) for m in matrices],
        "int8 products, torch": lambda: [
            torch._weight_int8pack_mm(inputs[m.shape[1]], m, scales) for m, scales in rounded
        ],
    }
    if load_decode_step(read_facts(tries_gpus=False)).value:
        for name, in_int8 in (("bf16", False), ("int8", True)):
            ways[f"compiled step in {name}, all of it"] = _step(model, in_int8=in_int8)
    return ways


def _step(model: Decoder, *, in_int8: bool) -> Callable[[], object]:
    """Return what computes a token after half a context by the compiled step."""
    decoder, half = CachedDecoder(model, torch.bfloat16), model.shape.context // 2
    if in_int8:
        decoder.compute_in_int8(model)
    else:
        decoder.compute_natively(True)
    decoder.extend(0, range(1, half + 1))

    def step() -> None:
        decoder.truncate(0, half)
        decoder.step([0], [1])

    return step


def _rounded(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix in int8, with the scale of each row."""
    scales = matrix.float().abs().amax(1) / _LARGEST
    return (matrix.float() / scales[:, None]).round().to(torch.int8), scales.bfloat16()


if __name__ == "__main__":
    main()
