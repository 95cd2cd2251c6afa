"""What ranks do for `test_replica.py`: a program of its own, because ranks are processes.

Four ranks of two machines train with a sharded replica on each machine, and the same alone. Then
two ranks of one machine go on from what those have saved. What they find is written to
DIRECTORY/rankN.json. On GPUs, with two of each machine:

    torchrun --nnodes 2 --nproc-per-node 2 … -m tests.train.distributed.hybrid_ranks DIRECTORY cuda
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from llmtrain.profile.schema import CheckpointSection
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.part_saver import PartSaver
from llmtrain.train.checkpoint.writing import save_checkpoint
from llmtrain.train.distributed.world import World, world_from_environment
from llmtrain.train.loop import Run
from tests.train.distributed.sharded_ranks import (
    KIND,
    VARIANTS,
    alone_beside,
    checkpoint_of,
    diagnosed,
    largest_difference,
    losses,
    overflow,
    run_of,
    whole_weights,
)

STEPS, SAVED = 10, 5
HYBRID: dict[str, Any] = {"device.sharding": "hybrid", "train.micro_batch": 1}


def trained(world: World, name: str) -> dict[str, Any]:
    """How far training with a replica on each machine is from that of one process."""
    settings = VARIANTS[name] | HYBRID
    run, alone = run_of(world, **settings), run_of(alone_beside(world), **settings)
    assert run.plan.sharding.value == "hybrid"
    assert run.plan.accumulation.value == 2
    ours, theirs = losses(run, STEPS), losses(alone, STEPS)
    weights = whole_weights(run)
    state = sum(t.numel() for each in run.optimizer.state.values() for t in each.values())
    whole = sum(t.numel() for each in alone.optimizer.state.values() for t in each.values())
    digest = hashlib.sha256()
    for weight in weights.values():
        digest.update(weight.cpu().numpy().tobytes())
    return {
        "loss": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
        "fell": theirs[0] - theirs[-1],
        "weights": largest_difference(weights, whole_weights(alone)),
        "digest": digest.hexdigest(),
        "state_share": state / whole,
    }


def save(run: Run, directory: Path) -> None:
    """Save by the ranks that have to."""
    world = run.world
    if world.is_main:
        directory.mkdir()
    run.all_reduce([0.0])
    if world.rank < run.saving_ranks:
        assert world.store is not None
        own = replace(world, store=PrefixStore(directory.name, world.store))
        saver = PartSaver(
            directory, CheckpointSection(), lambda _: None, own, 60.0, ranks=run.saving_ranks
        )
        saver.save(checkpoint_of(run), in_background=False)
        saver.close()
    run.all_reduce([0.0])


def goes_on(world: World, directory: Path, **settings: Any) -> list[float]:
    """The losses of a run that continues what is saved in `directory`."""
    saved = load_checkpoint(directory / f"step-{SAVED:08d}")
    return losses(run_of(world, saved, **settings), STEPS - SAVED)


def resumed(world: World, directory: Path) -> dict[str, list[float]]:
    """The losses after a save: of one process, and of those that continue what others saved."""
    alone = run_of(alone_beside(world), **HYBRID)
    hybrid, sharded = (
        run_of(world, **HYBRID),
        run_of(world, **HYBRID | {"device.sharding": "shard"}),
    )
    for run in (alone, hybrid, sharded):
        losses(run, SAVED)
    save(hybrid, directory / "hybrid")
    save(sharded, directory / "shard")
    if world.is_main:
        (directory / "alone").mkdir()
        save_checkpoint(directory / "alone", checkpoint_of(alone))
    hybrid.all_reduce([0.0])
    found = {"alone": losses(alone, STEPS - SAVED), "hybrid": losses(hybrid, STEPS - SAVED)}
    for name in ("hybrid", "shard", "alone"):
        found[f"hybrid from {name}"] = goes_on(world, directory / name, **HYBRID)
    found["one from hybrid"] = goes_on(alone_beside(world), directory / "hybrid", **HYBRID)
    return found


def resumed_by_fewer(world: World, directory: Path) -> dict[str, list[float]]:
    """The losses of one machine's ranks that continue what two machines saved."""
    found = {}
    for sharding in ("shard", "replicate"):
        settings = HYBRID | {"device.sharding": sharding}
        found[f"{sharding} from hybrid"] = goes_on(world, directory / "hybrid", **settings)
    return found


def main() -> None:
    directory, world = Path(sys.argv[1]), world_from_environment()
    work: dict[str, Callable[[], Any]]
    with world.process_group("nccl" if KIND == "cuda" else "gloo", 60.0):
        if world.has_several_machines:
            work = {name: partial(trained, world, name) for name in VARIANTS}
            work |= {
                "resumed": partial(resumed, world, directory),
                "overflow": partial(overflow, world, 3, **HYBRID),
                "diagnosed": partial(diagnosed, world, 3, **HYBRID),
                "equal": lambda: world.has_equal_machines,
            }
        else:
            work = {"resumed": partial(resumed_by_fewer, world, directory)}
        found = {name: do() for name, do in work.items()}
        (directory / f"rank{world.rank}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
