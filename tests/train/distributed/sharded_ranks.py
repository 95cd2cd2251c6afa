"""What two ranks do for `test_sharding.py`: a program of its own, because ranks are processes.

Each trains sharded, and the same alone; what they find is written to DIRECTORY/rankN.json. On GPUs:

    torchrun --standalone --nproc-per-node 2 -m tests.train.distributed.sharded_ranks DIRECTORY cuda
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtrain.engine.workload import workload_of
from llmtrain.machine.probe import read_facts
from llmtrain.plan.planner import make_plan
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import CheckpointSection
from llmtrain.profile.setting import Setting
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.build import RandomState, build_run, rewind_run
from llmtrain.train.checkpoint.format import Checkpoint, SavedState, load_checkpoint
from llmtrain.train.checkpoint.part_saver import PartSaver
from llmtrain.train.checkpoint.writing import save_checkpoint
from llmtrain.train.distributed.sharded_optimizer import ShardedGradScaler
from llmtrain.train.distributed.sharding import local_part
from llmtrain.train.distributed.world import World, world_from_environment
from llmtrain.train.divergence.diagnosis import diagnose
from llmtrain.train.loop import Run, training_steps
from llmtrain.train.readers import TrainTokens
from llmtrain.train.state import saved_tensors
from tests.data.fixed import TOKENIZER
from tests.tokens import PredictableIds

KIND = sys.argv[2] if len(sys.argv) > 2 else "cpu"
SETTINGS: dict[str, Any] = {
    "model.vocab_size": 501,  # which two ranks do not share evenly
    "model.hidden_size": 32,
    "model.intermediate_size": 48,
    "model.num_layers": 3,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.context": 16,
    "train.tokens_per_step": 8 * 16,
    "train.micro_batch": 2,
    "train.steps": 40,
    "optim.warmup_steps": 0,
    "optim.learning_rate": 1e-2,
    "device.kind": KIND,
    "device.processes": 1,  # of those alone; ranks are as launched
    "device.threads": 1,
    "device.compile": False,
    "device.precision": "fp32",
    "device.attention": "sdpa",
    "device.sharding": "shard",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw": {
        "optim.name": "adamw",
        "optim.learning_rate": 1e-3,
        "model.tie_embeddings": False,
        "device.activation_checkpointing": "full",
        "train.gradient_clip": 0.3,
    },
    "bf16": {"device.precision": "bf16", "device.activation_checkpointing": "selective"},
}


def run_of(world: World, resumed: Checkpoint | None = None, **settings: Any) -> Run:
    """A run of the ranks of `world`, or of one process."""
    flags = {name: Setting(value, "test") for name, value in (SETTINGS | settings).items()}
    profile = load_profile(environment={}, flags=flags).profile
    facts = read_facts(cuda_index=world.local_rank, tries_gpus=KIND == "cuda")
    plan = make_plan(facts, profile.device, workload_of(profile, world, facts))
    return build_run(profile, plan, world, TrainTokens(PredictableIds()), resumed)


def alone_beside(world: World) -> World:
    """One process, on this rank's own device."""
    return World(local_rank=world.local_rank, local_size=world.local_size)


def losses(run: Run, steps: int) -> list[float]:
    stepping = training_steps(run)
    return [next(stepping).loss for _ in range(steps)]


def whole_weights(run: Run) -> dict[str, Tensor]:
    found = {}
    for name, parameter in run.model.named_parameters():
        whole: Any = parameter.detach()
        found[name] = whole.full_tensor() if hasattr(whole, "full_tensor") else whole.clone()
    return found


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def checkpoint_of(run: Run) -> Checkpoint:
    state = SavedState(
        step=run.position.step,
        tokens=run.position.tokens,
        windows=run.position.windows,
        elapsed_s=0,
        horizon_steps=None,
        torch_rng=RandomState.now().text,
        course=run.divergence,
        numerics={},
    )
    tokenizer = Tokenizer.load(TOKENIZER)
    return Checkpoint(state, *saved_tensors(run), run.model.shape, tokenizer)


def trained(world: World, name: str) -> dict[str, Any]:
    """How far sharded training is from that of one process."""
    run = run_of(world, **VARIANTS[name])
    assert run.plan.sharding.value == "shard"
    ours = losses(run, 10)
    weights = whole_weights(run)
    alone = run_of(alone_beside(world), **VARIANTS[name])
    theirs = losses(alone, 10)
    state = sum(t.numel() for each in run.optimizer.state.values() for t in each.values())
    whole = sum(t.numel() for each in alone.optimizer.state.values() for t in each.values())
    return {
        "loss": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
        "fell": theirs[0] - theirs[-1],
        "weights": largest_difference(weights, whole_weights(alone)),
        "state_share": state / whole,
    }


def resumed(world: World, directory: Path) -> dict[str, Any]:
    """How far runs that go on at another number of ranks are from the one that was saved."""
    run, alone = run_of(world), run_of(alone_beside(world))
    losses(run, 4)
    losses(alone, 4)
    saved: list[Any] = []
    (directory / "two").mkdir(exist_ok=True)
    saver = PartSaver(
        directory / "two", CheckpointSection(), saved.append, world, 60.0, ranks=world.size
    )
    saver.save(checkpoint_of(run), in_background=True)
    losses(run, 1)  # changes the weights while they are written
    saver.save(checkpoint_of(run), in_background=False)
    saver.close()
    if world.is_main:
        (directory / "one").mkdir()
        save_checkpoint(directory / "one", checkpoint_of(alone))
    run.all_reduce([0.0])
    one, two = directory / "one" / "step-00000004", directory / "two" / "step-00000004"
    at_one, at_two = (run_of(alone_beside(world), load_checkpoint(p)) for p in (one, two))
    sharded = [run_of(world, load_checkpoint(p)) for p in (one, two)]
    continued = [losses(each, 3) for each in (alone, at_one, at_two, *sharded)]
    return {
        "saved": [event.step for event in saved],
        "losses": continued,
        "steps": [each.position.step for each in (at_two, *sharded)],
    }


def overflow(world: World, bad_rank: int = 1, **settings: Any) -> dict[str, Any]:
    """A gradient that overflows on one rank after the ranks have added theirs."""
    run = run_of(world, **settings)
    run.scaler = ShardedGradScaler(KIND, init_scale=1024.0)
    before = whole_weights(run)
    unscale = run.scaler.unscale_

    def overflowing(optimizer: torch.optim.Optimizer) -> None:
        if world.rank == bad_rank and run.position.step == 1:
            gradient = next(iter(run.model.parameters())).grad
            assert gradient is not None
            local_part(gradient).fill_(torch.inf)
        unscale(optimizer)

    run.scaler.unscale_ = overflowing  # type: ignore[method-assign]
    steps = training_steps(run)
    found = {}
    for step in range(3):
        next(steps)
        after = whole_weights(run)
        found[f"step {step + 1}"] = [run.scaler.get_scale(), largest_difference(before, after)]
        before = after
    return found


def diagnosed(world: World, bad_rank: int = 1, **settings: Any) -> dict[str, Any]:
    """What the ranks say of a bad number that only one of them has."""
    found: dict[str, Any] = {}
    run = run_of(world, **settings)
    losses(run, 1)

    def spoil(_module: Any, _arguments: Any, output: Tensor) -> Tensor:
        return output * torch.nan if world.rank == bad_rank else output

    hook = run.model.model.layers[1].register_forward_hook(spoil)
    found["output"] = repr(diagnose(run, 0))
    hook.remove()
    found["nothing"] = repr(diagnose(run, 0))
    if world.rank == bad_rank:
        local_part(run.model.model.embed_tokens.weight.detach())[0, 0] = torch.nan
    found["weight"] = repr(diagnose(run, 0))
    rewind_run(run, 0, None)
    alone = run_of(alone_beside(world), **settings)
    found["rewound"] = largest_difference(whole_weights(run), whole_weights(alone))
    with run.whole_weights():
        tokens = torch.arange(16, device=run.device)[None]
        found["gathered"] = float((run.model.logits(tokens) - alone.model.logits(tokens)).norm())
    return found


def main() -> None:
    directory, world = Path(sys.argv[1]), world_from_environment()
    with world.process_group("nccl" if KIND == "cuda" else "gloo", 60.0):
        work: dict[str, Any] = {name: partial(trained, world, name) for name in VARIANTS}
        work |= {
            "resumed": partial(resumed, world, directory),
            "overflow": partial(overflow, world),
            "diagnosed": partial(diagnosed, world),
        }
        found = {name: do() for name, do in work.items()}
        (directory / f"rank{world.rank}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
