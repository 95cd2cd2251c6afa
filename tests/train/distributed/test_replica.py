"""A model that is sharded within each of two machines trains as a whole one.

The machines are pairs of ranks of this one. All that needs ranks is in two launches.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.parts import tensor_files
from llmtrain.train.distributed.replica import Replica, replica_of
from llmtrain.train.distributed.world import World
from tests.pinned import pinned_keywords, pinned_options
from tests.train.distributed.hybrid_ranks import SAVED
from tests.train.distributed.two_ranks import (
    assert_trains_as_one_process,
    found_by_ranks,
    run_ranks,
)
from tests.train.harness import Files, RunAlone, Start

MODULE = "tests.train.distributed.hybrid_ranks"
LIMIT_S = 200


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks of two machines have left what they found, and saved."""
    directory = tmp_path_factory.mktemp("hybrid")
    run_ranks(MODULE, directory, 4, 2)
    return directory


@pytest.fixture(scope="module")
def found(directory: Path) -> list[dict[str, Any]]:
    return found_by_ranks(directory, 4)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_losses_and_weights_are_those_of_one_process(
    name: str, found: list[dict[str, Any]]
) -> None:
    assert_trains_as_one_process(found, name, weights=1e-5)


def test_in_bf16_too(found: list[dict[str, Any]]) -> None:
    """Within the rounding of bf16."""
    assert found[0]["bf16"]["loss"] < 0.02


@pytest.mark.parametrize("name", ["muon", "adamw", "bf16"])
def test_the_replicas_of_machines_stay_the_same(name: str, found: list[dict[str, Any]]) -> None:
    assert len({rank[name]["digest"] for rank in found}) == 1


def test_a_checkpoint_goes_on_as_hybrid_and_on_one_process(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert len(rank["resumed"]) == 6
        for losses in rank["resumed"].values():
            assert losses == pytest.approx(rank["resumed"]["alone"], abs=1e-5)


def test_what_two_machines_saved_goes_on_on_one(
    found: list[dict[str, Any]], directory: Path, tmp_path: Path
) -> None:
    assert found
    shutil.copytree(directory / "hybrid", tmp_path / "hybrid")
    run_ranks(MODULE, tmp_path, 2, 2)
    for rank in found_by_ranks(tmp_path, 2):
        assert rank["resumed"].keys() == {"shard from hybrid", "replicate from hybrid"}
        for losses in rank["resumed"].values():
            assert losses == pytest.approx(found[0]["resumed"]["alone"], abs=1e-5)


def test_the_ranks_of_the_first_machine_save(found: list[dict[str, Any]], directory: Path) -> None:
    assert found
    hybrid, shard = (directory / name / f"step-{SAVED:08}" for name in ("hybrid", "shard"))
    for place, parts in ((hybrid, 2), (shard, 4)):
        names = [path.name for path in place.iterdir()]
        assert len(tensor_files("model", names)) == len(tensor_files("optimizer", names)) == parts
    ours, theirs = load_checkpoint(hybrid), load_checkpoint(shard)
    assert ours.weights.keys() == theirs.weights.keys()
    assert ours.optimizer.keys() == theirs.optimizer.keys()


def test_an_overflow_on_one_rank_skips_the_update_on_all(found: list[dict[str, Any]]) -> None:
    """The rank is one of the second machine."""
    overflows = [rank["overflow"] for rank in found]
    assert all(each == overflows[0] for each in overflows)
    scales, changes = zip(*overflows[0].values(), strict=True)
    assert scales == (1024.0, 512.0, 512.0)
    assert changes[1] == 0 < min(changes[0], changes[2])


def test_all_ranks_say_where_a_bad_number_came_from(found: list[dict[str, Any]]) -> None:
    first, *others = (rank["diagnosed"] for rank in found)
    assert all(other == first for other in others)
    assert "place='output', name='model.layers.1'" in first["output"]
    assert "position=6" in first["output"], "of rank 3's first window"
    assert first["nothing"] == "None"
    assert "place='weight', name='model.embed_tokens.weight'" in first["weight"]
    assert first["rewound"] == 0
    assert first["gathered"] < 1e-5


def test_rank_0_knows_that_machines_have_as_many_ranks(found: list[dict[str, Any]]) -> None:
    assert found[0]["equal"]


def test_all_ranks_have_one_replica_where_it_is_sharded_over_all() -> None:
    world = World(rank=3, size=4, local_rank=1, local_size=2)
    assert replica_of(world, "shard", 60.0) == Replica(3, 4)


@pytest.mark.slow
def test_the_command_trains_on_two_machines_and_one_of_them_continues(
    start: Start, place: Path, run_alone: RunAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = (*pinned_options(), "--set", "checkpoint.every_steps=7", "--resume", "auto")
    train = ("train", "-p", "tiny.yaml", "--out", "run", *options)
    shared = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    with monkeypatch.context() as patch:
        for rank in range(4):
            for name, value in (shared | {"RANK": str(rank), "LOCAL_RANK": str(rank % 2)}).items():
                patch.setenv(name, value)
            ranks.append(start(*train, "--set", "device.sharding=hybrid"))
    for process in ranks:
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err
    run, alone = Files(place / "run"), run_alone(**pinned_keywords())
    for ours, theirs in zip(run.course(), alone.course(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert len(list(run.newest.glob("model-*.safetensors"))) == 2
    _, err = start(*train, "--set", "train.steps=22").communicate(timeout=LIMIT_S)
    assert Files(place / "run").course()[-1]["step"] == 22, err
