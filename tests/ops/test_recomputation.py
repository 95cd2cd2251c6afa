"""What is computed again without torch's checkpointing is bitwise what it was."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from llmtrain.choice import ActivationCheckpointing, AttentionKernel
from llmtrain.model.decoder import Decoder
from llmtrain.model.lora import add_adapters, reset_adapters
from llmtrain.ops.precision import WeightCasts
from llmtrain.ops.recomputation import recomputed
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.profile.shape import ModelShape
from tests.checkout import ROOT
from tests.ops.test_checkpointing import ATTENTION, PRODUCTS, Counted, draw, mixed

Found = tuple[list[Tensor], Counted]
SHAPE = ModelShape(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    context=16,
    rope_theta=10_000.0,
    norm_epsilon=1e-6,
    qk_norm=True,
    tie_embeddings=True,
)

_ADAPTED_STEP = """
import sys
import torch
from llmtrain.model.lora import adapted_decoder
from llmtrain.ops.precision import WeightCasts
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.model.huggingface import weight_shapes
from tests.ops.test_recomputation import SHAPE

drawn = ((name, torch.full(dims, 0.01)) for name, dims in weight_shapes(SHAPE))
model = adapted_decoder(SHAPE, drawn, LoraShape(2, 4.0, ("q_proj",)), torch.bfloat16)
model.compute_with(
    attention="blocks", checkpointing=sys.argv[1], casts=WeightCasts(torch.bfloat16)
)
tokens = torch.arange(16)[None]
with torch.autocast("cpu", dtype=torch.bfloat16):
    loss = model(tokens, tokens)
loss.backward()
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("mode", ["off", "selective", "full"])
def test_an_eager_step_beside_adapters_does_not_import_the_compiler(mode: str) -> None:
    """It is 80 MiB of a process whose memory is short."""
    command = [sys.executable, "-c", _ADAPTED_STEP, mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def trained(
    dtype: torch.dtype, kernel: AttentionKernel, mode: ActivationCheckpointing, *, casts: bool
) -> Found:
    """The loss and all gradients of a model with adapters, and what its backward ran."""
    model = Decoder(SHAPE)
    model.initialise(0)
    for block in model.model.blocks():
        add_adapters(block, LoraShape(rank=2, alpha=4.0, targets=("q_proj", "down_proj")))
    reset_adapters(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    for parameter in (model.model.embed_tokens.weight, model.model.norm.weight):
        parameter.requires_grad_(False)
    model.compute_with(
        attention=kernel, checkpointing=mode, casts=WeightCasts(dtype) if casts else None
    )
    draws = torch.Generator().manual_seed(1)
    tokens = torch.randint(SHAPE.vocab_size, (2, SHAPE.context), generator=draws)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = model(tokens, tokens)
    with Counted() as counted:
        loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(each is not None for each in gradients), "also of the first block"
    return [loss.detach(), *(each for each in gradients if each is not None)], counted


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
@pytest.mark.parametrize(
    ("dtype", "casts"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_adapters_learn_bitwise_the_same(
    mode: ActivationCheckpointing, dtype: torch.dtype, casts: bool, kernel: AttentionKernel
) -> None:
    (plain, runs), (less, runs_of_less) = (
        trained(dtype, kernel, tried, casts=casts) for tried in ("off", mode)
    )
    assert all(map(torch.equal, plain, less))
    for names in (PRODUCTS, ATTENTION):
        again = runs_of_less.of(names) - runs.of(names)
        assert again == 0 if mode == "selective" else again > 0


def test_what_is_kept_is_freed_and_less_than_all() -> None:
    """The inputs of passes over memory are not kept."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    x, up, down = draw()
    for call in (lambda: mixed(x, up, down, "blocks"), lambda: less(x, up, down)):
        kept.append(-1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call()
    second = kept.index(-1, 1)
    assert sum(kept[second + 1 :]) < sum(kept[1:second]) / 2


def less(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return recomputed(lambda x: mixed(x, up, down, "blocks"), [up, down], x)


def test_an_input_without_gradient_leaves_those_of_parameters() -> None:
    layer = nn.Linear(3, 2, bias=False)
    x = torch.ones(4, 3)
    recomputed(layer, [layer.weight], x).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.full((2, 3), 4.0))
