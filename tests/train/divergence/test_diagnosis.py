"""What is named is what broke, however the model computes; and looking for it changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from llmtrain.engine.workload import workload_of
from llmtrain.machine.probe import read_facts
from llmtrain.model import block, decoder
from llmtrain.plan.planner import make_plan
from llmtrain.profile.load import load_profile
from llmtrain.profile.setting import Setting
from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.train.build import build_run
from llmtrain.train.distributed.world import World
from llmtrain.train.divergence.diagnosis import Finding, describe, diagnose, passages
from llmtrain.train.loop import Run, training_steps
from llmtrain.train.readers import TrainTokens
from tests.tokens import PredictableIds

# torch hides it from users, though not from a filter that makes it an error
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
SETTINGS: dict[str, Any] = {
    "model.vocab_size": 300,
    "model.hidden_size": 32,
    "model.intermediate_size": 48,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.context": 16,
    "train.tokens_per_step": 8 * 16,
    "train.micro_batch": 2,
    "train.steps": 20,
    "optim.warmup_steps": 0,
    "device.kind": "cpu",
    "device.threads": 1,
    "device.compile": False,
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"device.precision": "fp32", "device.attention": "sdpa"},
    "kept casts, blocks": {"device.precision": "bf16", "device.attention": "blocks"},
    "computed again": {
        "device.precision": "bf16",
        "device.attention": "blocks",
        "device.activation_checkpointing": "full",
    },
    "compiled": {
        "device.precision": "bf16",
        "device.compile": True,
        "device.activation_checkpointing": "selective",
    },
    "untied head": {"device.precision": "fp32", "model.tie_embeddings": False},
}


class Ids(PredictableIds):
    """Ids below 290: tests put larger ones in."""

    ids = np.arange(4000, dtype=np.int64) * 7 % 290


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled modules are traced and called as such, without a C++ compiler's minute."""

    def trace(block: nn.Module) -> None:
        block.compile(backend="eager", dynamic=False)

    torch.compiler.reset()
    monkeypatch.setattr(decoder, "compile_block", trace)
    monkeypatch.setattr(decoder, "compiled_exponentiate", lambda: decoder.exponentiate)
    yield
    torch.compiler.reset()


def run_of(way: str = "plain", steps: int = 1) -> Run:
    """A run that has done some steps."""
    values = SETTINGS | WAYS[way]
    flags = {name: Setting(value, "test") for name, value in values.items()}
    profile = load_profile(environment={}, flags=flags).profile
    facts = read_facts()
    plan = make_plan(facts, profile.device, workload_of(profile, None, facts))
    run = build_run(profile, plan, World(), TrainTokens(Ids()))  # type: ignore[arg-type]
    stepping = training_steps(run)
    for _ in range(steps):
        next(stepping)
    return run


def broken(value: Tensor) -> Tensor:
    """One number of it is none."""
    one = torch.zeros(value.shape, dtype=torch.bool, device=value.device)
    one.view(-1)[-1] = True
    return torch.where(one, math.nan, value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.1.input_layernorm",
        "model.layers.0",
        "model.norm",
        "",
    ],
)
def test_the_module_that_broke_is_named(name: str, way: str) -> None:
    run = run_of(way)
    run.model.get_submodule(name).register_forward_hook(lambda _m, _a, out: broken(out))
    report = next(training_steps(run))
    if way != "compiled":  # what is compiled knows of no hooks that come later
        assert not report.verdict.is_finite
    found = diagnose(run, report.first_window)
    assert found == Finding("output", name or "head and loss", report.first_window)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.k_norm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
    ],
)
def test_the_parameter_whose_gradient_broke_is_named(name: str, way: str) -> None:
    run = run_of(way)
    run.model.get_parameter(name).register_hook(broken)
    report = next(training_steps(run))
    assert not report.verdict.is_finite
    assert math.isfinite(report.loss)
    found = diagnose(run, report.first_window)
    assert found == Finding("gradient", name, report.first_window)


def test_of_several_gradients_the_first_that_the_backward_reaches_is_named() -> None:
    run = run_of()

    # what enters the backward of block 0 is not finite, and with it all gradients from there on
    run.model.model.layers[0].register_full_backward_pre_hook(
        lambda _module, gradients: (broken(gradients[0]),)
    )
    report = next(training_steps(run))
    found = diagnose(run, report.first_window)
    assert found is not None
    assert found.place == "gradient"
    assert found.name == "model.layers.0.mlp.down_proj.weight"


def test_what_breaks_between_modules_is_seen_where_it_enters_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_of()
    attention = block.causal_attention
    monkeypatch.setattr(block, "causal_attention", lambda *a: broken(attention(*a)))
    found = diagnose(run, 0)
    assert found == Finding("input", "model.layers.0.self_attn.o_proj", 0)


def test_weights_that_are_not_finite_are_named_before_all_else() -> None:
    run = run_of()
    with torch.no_grad():
        run.model.get_parameter("model.layers.1.mlp.gate_proj.weight")[3, 4] = math.inf
    assert diagnose(run, 0) == Finding("weight", "model.layers.1.mlp.gate_proj.weight")


@pytest.mark.parametrize("way", ["plain", "kept casts, blocks"])
def test_the_window_is_named_that_breaks_it(way: str) -> None:
    run = run_of(way)
    first = run.position.windows
    poison = torch.from_numpy(run.batches.read(first + 5, 1)[0][0])

    def spoil(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        hit = (args[0] == poison).all(dim=-1)
        return torch.where(hit[:, None, None], math.nan, out)

    run.model.model.embed_tokens.register_forward_hook(spoil)
    assert not next(training_steps(run)).verdict.is_finite
    assert diagnose(run, first) == Finding("output", "model.embed_tokens", first + 5)
    assert diagnose(run, first + 6) is None


@pytest.mark.parametrize("way", WAYS)
def test_looking_changes_nothing(way: str) -> None:
    looked, other = run_of(way), run_of(way)
    before = {name: weight.clone() for name, weight in looked.model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in looked.model.modules())
    graphs = counters["stats"]["unique_graphs"]
    assert diagnose(looked, looked.position.windows) is None
    assert counters["stats"]["unique_graphs"] == graphs  # compiling for it takes a minute
    assert all(torch.equal(w, before[n]) for n, w in looked.model.state_dict().items())
    assert all(p.grad is None for p in looked.model.parameters())
    assert hooks == sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in looked.model.modules()
    )
    for run in (looked, other):
        next(training_steps(run))
    weights = other.model.state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in looked.model.state_dict().items())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "the quick brown fox jumps over the lazy dog and runs away again " * 50
    return train_tokenizer([text], vocab_size=300).tokenizer


def test_a_finding_is_told_with_its_text(tokenizer: Tokenizer) -> None:
    run = run_of()
    ids = np.array(tokenizer.encode("the lazy dog jumps over the fox " * 400), dtype=np.int64)
    run.batches._stream.ids = ids[:4000]  # type: ignore[attr-defined]
    start = run.batches.first_token(3)
    begins = repr(tokenizer.decode(ids[start : start + 16].tolist())[:60])
    where = f"tokens {start} to {start + 16} of the training text, {begins}"

    told = describe(run, tokenizer, 0, Finding("output", "model.norm", 3))
    assert told == f"first not finite: in the forward, the output of model.norm; of {where}"
    told = describe(run, tokenizer, 0, Finding("gradient", "model.norm.weight", 3))
    assert "in the backward, the gradient of model.norm.weight" in told
    told = describe(run, tokenizer, 3, Finding("weight", "model.norm.weight"))
    assert told.endswith(f"the batch has 8 windows, the first {where}")
    assert "model.norm.weight" in told
    assert describe(run, tokenizer, 3, None).startswith("each window alone is finite")


def test_whole_passages_of_a_window_are_kept(tokenizer: Tokenizer) -> None:
    run = run_of()
    dog, fox, a = (tokenizer.encode(text) for text in ("the lazy dog", "the brown fox", "a"))
    separator = tokenizer.separator_id
    ids = [*dog[1:], separator, *a, separator, *fox][:16]
    assert len(ids) == 16
    run.batches._stream.ids = np.array(ids * 250, dtype=np.int64)  # type: ignore[attr-defined]
    found = passages(run, tokenizer, 0, Finding("output", "model.norm", 5))
    last = tokenizer.decode(ids[len(dog) + 1 + len(a) :])
    assert found == [tokenizer.decode(dog[1:]), last]
    assert "the brown fox".startswith(last)
