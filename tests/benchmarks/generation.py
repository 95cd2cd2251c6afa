"""How fast texts are generated, beside the memory's speed, transformers and llama.cpp.

One model, in bf16 on the CPU, greedy, one text at a time. Every round measures all of them in turn,
and the best round of each counts, so that other work on the machine disturbs least. The bound is
the speed at which memory is read in the same rounds, over the bytes of the weights that a token
needs: a model that partly fits the cache can be above it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.generate.native.library import load_decode_step
from llmtrain.generate.weights import DecoderWeights
from llmtrain.machine.probe import read_facts
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import autocast_as
from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.checkpoint.format import Checkpoint
from llmtrain.train.checkpoint.writing import save_checkpoint
from tests.checkpoints import STATE
from tests.data.fixed import TOKENIZER

_READ_BYTES = 1 << 29  # more than any cache has
Rate = Callable[[], float]  # measures once


@dataclass(frozen=True, slots=True)
class Work:
    """What is generated."""

    prompt: tuple[int, ...]
    tokens: int


def main() -> None:
    """Print a row of Markdown for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="cpu-small")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="texts of the batched row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--own", action="store_true", help="without transformers and llama.cpp")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Decoder(shape_of(load_profile(options.profile).profile.model)).eval()
    model.initialise(0)
    prompt = tuple(range(1, model.shape.context // 2 + 1))
    work = Work(prompt, min(options.tokens, model.shape.context - len(prompt)))
    with tempfile.TemporaryDirectory() as directory:
        measured = _own_systems(model, work, options.batch)
        if not options.own:
            measured |= _others(model, work, Path(directory), options.threads)
        best = dict.fromkeys(measured, 0.0)
        for _ in range(options.rounds):
            for name, rate in measured.items():
                best[name] = max(best[name], rate())
    _show(best, _token_bytes(CachedDecoder(model, torch.bfloat16)._weights))


def _own_systems(model: Decoder, work: Work, batch: int) -> dict[str, Rate]:
    source = torch.ones(_READ_BYTES // 4)
    tokens_bt = torch.tensor([work.prompt])
    step = load_decode_step(read_facts(tries_gpus=False), lambda text: None)
    found: dict[str, Rate] = {
        "memory, GB/s": lambda: _READ_BYTES / 1e9 / _seconds(source.sum),
        "training's forward, prompt tokens/s": lambda: _forward_rate(model, tokens_bt),
    }
    own = CachedDecoder(model, torch.bfloat16, slots=batch)
    found["llmtrain, prompt tokens/s"] = lambda: _prompt_rate(own, work)
    for name in ("compiled step", "compiled step in int8", "torch"):
        is_native = name != "torch"
        if is_native and not step.value:
            continue
        decoder = CachedDecoder(model, torch.bfloat16, slots=batch)
        if name.endswith("int8"):
            decoder.compute_in_int8(model)
        else:
            decoder.compute_natively(is_native)
        found[f"llmtrain, {name}"] = partial(_own_rate, decoder, work, 1)
        found[f"llmtrain, {name}, {batch} texts"] = partial(_own_rate, decoder, work, batch)
    return found


def _others(model: Decoder, work: Work, directory: Path, threads: int) -> dict[str, Rate]:
    found: dict[str, Rate] = {}
    checkpoint = _saved(model, directory)
    if find_spec("transformers") is not None:
        found["transformers, generate"] = _transformers_rate(checkpoint, work)
    if find_spec("xllamacpp") is not None and find_spec("gguf") is not None:
        found["llama.cpp, bf16 GGUF"] = _llama_rate(checkpoint, directory, work, threads)
    return found


def _saved(model: Decoder, directory: Path) -> Path:
    """Save an untrained model with a tokenizer of fewer pieces; what it says does not matter."""
    tokenizer = Tokenizer.load(TOKENIZER)
    return save_checkpoint(
        directory, Checkpoint(STATE, model.state_dict(), {}, model.shape, tokenizer)
    )


def _seconds(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s


def _token_bytes(weights: DecoderWeights) -> int:
    """The bytes of the weights that one token's computation reads."""
    matrices = [
        matrix
        for layer in weights.layers
        for matrix in (*layer.query_key_value, layer.output, *layer.gate_up, layer.down)
    ]
    return sum(matrix.nbytes for matrix in [*matrices, weights.head])


@torch.no_grad()
def _forward_rate(model: Decoder, tokens_bt: torch.Tensor) -> float:
    with autocast_as("bf16", torch.device("cpu")):
        elapsed_s = _seconds(lambda: model(tokens_bt, tokens_bt))
    return tokens_bt.numel() / elapsed_s


def _prompt_rate(decoder: CachedDecoder, work: Work) -> float:
    decoder.truncate(0, 0)
    return len(work.prompt) / _seconds(lambda: decoder.extend(0, work.prompt))


def _own_rate(decoder: CachedDecoder, work: Work, batch: int) -> float:
    """Return the tokens per second of all texts, each token the likeliest one."""
    slots = range(batch)
    for slot in slots:
        decoder.truncate(slot, 0)
        decoder.extend(slot, work.prompt)
    tokens: list[int] = [1] * batch

    def generate() -> None:
        nonlocal tokens
        for _ in range(work.tokens):
            tokens = decoder.step(slots, tokens).argmax(-1).tolist()

    return batch * work.tokens / _seconds(generate)


def _transformers_rate(checkpoint: Path, work: Work) -> Rate:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([work.prompt])

    def seconds(count: int) -> float:
        options: dict[str, Any] = {"min_new_tokens": count, "max_new_tokens": count}
        options |= {"do_sample": False, "attention_mask": torch.ones_like(prompt)}
        return _seconds(lambda: model.generate(prompt, **options))

    return lambda: (work.tokens - 1) / max(seconds(work.tokens) - seconds(1), 1e-9)


def _llama_rate(checkpoint: Path, directory: Path, work: Work, threads: int) -> Rate:
    import xllamacpp

    text = directory / "text.txt"
    text.write_text("What rounding costs is measured on this.\n" * 9, encoding="utf-8")
    command = [sys.executable, "-m", "llmtrain", "export", str(checkpoint), "--format", "gguf"]
    command += ["--data", str(text)]
    command += ["--quant", "bf16", "--no-verify", "--out", str(directory / "gguf"), "-q"]
    subprocess.run(command, check=True, capture_output=True)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next((directory / "gguf").glob("*.gguf")))
    parameters.port = 0
    parameters.ui = False
    parameters.n_gpu_layers = 0
    parameters.n_ctx = len(work.prompt) + work.tokens
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    address = urlsplit(server.listening_address).netloc

    def rate() -> float:
        document = {"prompt": list(work.prompt), "n_predict": work.tokens, "temperature": 0}
        document |= {"ignore_eos": True, "cache_prompt": False}
        connection = http.client.HTTPConnection(address)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/completion", json.dumps(document).encode(), headers)
        answer = json.loads(connection.getresponse().read())
        assert server is not None  # it ends with its last reference
        return float(answer["timings"]["predicted_per_second"])

    return rate


def _show(best: dict[str, float], token_bytes: int) -> None:
    bound = 1e9 * best["memory, GB/s"] / token_bytes
    facts = read_facts(tries_gpus=False)
    lines: Sequence[str] = [
        (
            f"{facts.cpu.model}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
            f"{token_bytes / 1e6:.0f} MB a token, at most {bound:.0f} tokens/s by memory"
        ),
        "",
        "| | per second | of the bound |",
        "| --- | --- | --- |",
        *(f"| {name} | {rate:.0f} | {_share(name, rate / bound)} |" for name, rate in best.items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _share(name: str, share: float) -> str:
    is_other = "int8" in name or name.endswith(("prompt tokens/s", "GB/s"))  # reads other bytes
    return "" if is_other else f"{share:.0%}"


if __name__ == "__main__":
    main()
