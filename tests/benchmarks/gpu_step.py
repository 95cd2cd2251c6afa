"""Where the time of a training step goes on a GPU, and what it could be at the least.

    python -m tests.benchmarks.gpu_step --profile gpu-small --nanogpt model.py
    python -m tests.benchmarks.gpu_step --sweep 32,64,128,256    # micro-batches, of as many tokens

Trains the profile's model on random tokens: by torch's kernels and by our own, compiled, and
nanoGPT's model and a Llama of transformers with Liger's kernels where they are named. Each is
timed over some steps, then one step of ours is profiled. The least time of a part is its
arithmetic at the rate of a large product, or its bytes at the bandwidth of a copy, both measured
in the same run.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmtrain.choice import BlockKernels
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import WeightCasts
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.train.parameter_groups import build_optimizer, set_learning_rate

DEVICE = torch.device("cuda")
Step = Callable[[], None]
# Kernels by the part of a step that they are of; the first pattern that is found counts.
PARTS = {
    "products": r"nvjet|gemm|cutlass|splitK|xmma",
    "attention": r"sdpa|flash|fmha|dot_do_o|convert_dq",
    "loss": r"cross_entropy|exp_sub|fused_amax|fused_sum_|softmax",
    "SwiGLU": r"silu|swiglu",
    "norms, rotary positions, residual stream": r"norm|rotary|triton_",
    "gradients added, casts, the rest": "",
}


@dataclass(frozen=True)
class Work:
    """The shape, its micro-batch and how many of them a step has."""

    profile: Profile
    micro_batch: int
    accumulation: int

    @property
    def shape(self) -> ModelShape:
        """The model's."""
        return shape_of(self.profile.model)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.micro_batch * self.accumulation * self.shape.context

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return a step's inputs and targets, on the GPU; small ids are the frequent ones."""
        size = (self.accumulation, self.micro_batch, self.shape.context + 1)
        ids = (torch.rand(size).pow(3) * self.shape.vocab_size).long().to(DEVICE)
        return [(each[:, :-1].contiguous(), each[:, 1:].contiguous()) for each in ids]


def main(arguments: Sequence[str]) -> int:
    """Print a line for each way to train, and a table of one step's parts."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("error: this needs a CUDA GPU\n")
        return 2
    torch.set_float32_matmul_precision("high")
    profile = load_profile(options.profile).profile
    work = Work(profile, options.micro_batch, options.accumulation)
    flops, bandwidth = _product_flops(), _copy_bandwidth()
    _say(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}: product "
        f"{flops / 1e12:.0f} TFLOP/s, copy {bandwidth / 1e12:.2f} TB/s read and written"
    )
    if options.sweep is not None:
        for each in _sweep(work, options.sweep):
            name = f"micro-batch {each.micro_batch}"
            _measure(name, partial(ours, each, "triton"), each, options.steps)
        return 0
    for name, build in _ways(work, options):
        _measure(name, build, work, options.steps)
    _show_parts(work, flops, bandwidth, options.top)
    return 0


def _sweep(work: Work, micro_batches: str) -> Iterator[Work]:
    """Yield the same step in other micro-batches, the first of them again at the end.

    A GPU's clock falls as it grows warm; by how much shows in the first and the last.
    """
    sizes = [int(each) for each in micro_batches.split(",")]
    windows = work.micro_batch * work.accumulation
    for size in (*sizes, sizes[0]):
        yield replace(work, micro_batch=size, accumulation=windows // size)


def _ways(work: Work, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Step]]]:
    if not options.own:
        yield "torch's kernels", lambda: ours(work, "torch")
    yield "own kernels", lambda: ours(work, "triton")
    if options.nanogpt is not None:
        yield "nanoGPT", lambda: nanogpt(work, options.nanogpt)
    if options.liger:
        yield "transformers and Liger", lambda: liger(work)


def ours(work: Work, kernels: BlockKernels) -> Step:
    """Return a step as `train` takes it, without data, logs and checkpoints."""
    profile = work.profile
    model = Decoder(work.shape)
    model.initialise(0)
    model.to(DEVICE)
    per_step = profile.train.chosen_tokens_per_step
    optimizer = build_optimizer(model, profile.optim, torch.bfloat16, tokens_per_step=per_step)
    set_learning_rate(optimizer, 0.1)
    casts = WeightCasts(torch.bfloat16)
    optimizer.register_step_post_hook(lambda *_: casts.forget())
    model.compute_with(
        loss="triton" if kernels == "triton" else "chunks",
        block_kernels=kernels,
        casts=casts,
        compiled=True,
    )
    return _stepping(work, model, optimizer)


def nanogpt(work: Work, path: Path) -> Step:
    """Return a step of nanoGPT's model and optimizer, compiled, by settings of its train.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    shape = work.shape
    config = module.GPTConfig(
        block_size=shape.context,
        vocab_size=shape.vocab_size,
        n_layer=shape.num_layers,
        n_head=shape.hidden_size // 64,
        n_embd=shape.hidden_size,
        dropout=0.0,
        bias=False,
    )
    model = module.GPT(config).to(DEVICE)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cuda")
    compiled: Any = torch.compile(model)

    def total_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = compiled(inputs, targets)[1] * targets.numel()
        return loss

    return _stepping(work, total_loss, optimizer, list(model.parameters()))


def liger(work: Work) -> Step:
    """Return a step of a Llama of transformers with Liger's kernels, by fused AdamW."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers import LlamaConfig, LlamaForCausalLM

    apply_liger_kernel_to_llama()
    shape = work.shape
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tie_embeddings,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, fused=True)

    def total_loss(inputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=inputs, labels=inputs).loss * targets.numel()
        return loss

    return _stepping(work, total_loss, optimizer, list(model.parameters()))


def _stepping(
    work: Work,
    objective: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter] | None = None,
) -> Step:
    batches = work.batches()
    if parameters is None:
        assert isinstance(objective, nn.Module)
        parameters = list(objective.parameters())

    def step() -> None:
        for inputs, targets in batches:
            with torch.autocast("cuda", torch.bfloat16):
                loss = objective(inputs, targets)
            torch.autograd.backward(loss / work.tokens)
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _measure(name: str, build: Callable[[], Step], work: Work, steps: int) -> None:
    step = build()
    first_s = _seconds(step)
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(_seconds(step) for _ in range(steps))
    peak = torch.cuda.max_memory_allocated() / 2**30
    flops = work.shape.training_flops_per_token * work.tokens / seconds
    _say(
        f"{name:24} {work.tokens / seconds / 1e3:7.1f}k tokens/s  step {1e3 * seconds:7.1f} ms  "
        f"{peak:5.1f} GiB  {100 * flops / 989e12:.1f}% of 989 TFLOP/s  first step {first_s:.0f} s"
    )
    del step
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


def _show_parts(work: Work, flops: float, bandwidth: float, top: int) -> None:
    """Print the parts of one step of ours, each with the least time that it could take.

    Then the `top` kernels that took the longest.
    """
    from torch.profiler import ProfilerActivity, profile

    step = ours(work, "triton")
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    part_ms: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    kernel_ms: Counter[tuple[str, str]] = Counter()
    for event in recorded.events():
        if event.device_type.name == "CUDA":
            part = next(name for name, rule in PARTS.items() if re.search(rule, event.name))
            part_ms[part] += event.device_time_total / 1e3
            launches[part] += 1
            kernel_ms[part, event.name] += event.device_time_total / 1e3
    floors = _floors_ms(work, flops, bandwidth)
    _say(f"\n{'part of a step':42} {'ms':>7} {'least':>7} {'launches':>9}")
    for part in PARTS:
        least = f"{floors[part]:7.0f}" if part in floors else f"{'':7}"
        _say(f"{part:42} {part_ms[part]:7.1f} {least} {launches[part]:9}")
    _say(f"{'all':42} {sum(part_ms.values()):7.1f} {sum(floors.values()):7.0f}")
    for (part, name), ms in kernel_ms.most_common(top):
        _say(f"{ms:7.1f} ms  {part.split(',')[0]}: {name[:100]}")


def _floors_ms(work: Work, flops: float, bandwidth: float) -> dict[str, float]:
    """Return the least time of each part by its arithmetic, or by the bytes it has to move.

    Of the residual stream in fp32 and all else in bf16, each pass reading and writing once.
    """
    shape, tokens = work.shape, work.tokens
    layers, width = shape.num_layers, shape.hidden_size
    heads = shape.attention_width + shape.kv_width
    products = 6 * (layers * shape.block_matrix_parameters + shape.vocab_size * width)
    attention = layers * 3.5 * 2 * shape.context * shape.attention_width
    norms = 2 * (12 + 16) * width + 2 * (2 + 3) * heads  # bytes, forward and backward
    swiglu = 2 * (3 + 5) * shape.intermediate_size

    def by_flops(per_token: float) -> float:
        return 1e3 * per_token * tokens / flops

    def by_bytes(per_token: float) -> float:
        return 1e3 * per_token * tokens / bandwidth

    return {
        "products": by_flops(products),
        "attention": by_flops(attention),
        "loss": by_bytes(2 * 2 * shape.vocab_size),
        "SwiGLU": by_bytes(layers * swiglu),
        "norms, rotary positions, residual stream": by_bytes(layers * norms),
    }


def _product_flops(size: int = 8192) -> float:
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16)
    return 2 * size**3 / min(_seconds(lambda: torch.mm(a, b)) for _ in range(20))


def _copy_bandwidth(size: int = 1 << 32) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    into = torch.empty_like(source)
    return 2 * size / min(_seconds(lambda: into.copy_(source)) for _ in range(10))


def _seconds(function: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--profile", default="gpu-small")
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--accumulation", type=int, default=8, help="micro-batches of a step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--own", action="store_true", help="leave torch's kernels out")
    parser.add_argument("--nanogpt", type=Path, help="nanoGPT's model.py")
    parser.add_argument("--sweep", metavar="N,N,…", help="micro-batches of ours to compare, alone")
    parser.add_argument("--top", type=int, default=0, help="kernels of the step to name")
    parser.add_argument("--liger", action="store_true", help="needs transformers and liger-kernel")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
