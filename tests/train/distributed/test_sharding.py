"""A sharded model trains as a whole one, on two ranks; all that needs ranks is in one launch."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.parts import INDEX, tensor_files
from llmtrain.train.checkpoint.pretrained import open_pretrained
from llmtrain.train.distributed.exchange import balanced_owners, own_rows
from tests.pinned import pinned_keywords, pinned_options
from tests.train.distributed.two_ranks import (
    assert_trains_as_one_process,
    found_by_two_ranks,
    run_two_ranks,
)
from tests.train.harness import Files, RunAlone, Start

LIMIT_S = 200


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks have left what they found."""
    directory = tmp_path_factory.mktemp("sharded")
    run_two_ranks("tests.train.distributed.sharded_ranks", directory)
    return directory


@pytest.fixture(scope="module")
def found(directory: Path) -> list[dict[str, Any]]:
    return found_by_two_ranks(directory)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_losses_and_weights_are_those_of_one_process(
    name: str, found: list[dict[str, Any]]
) -> None:
    assert_trains_as_one_process(found, name, weights=1e-4)


def test_in_bf16_too(found: list[dict[str, Any]]) -> None:
    """Within the rounding of bf16."""
    assert found[0]["bf16"]["loss"] < 0.02


def test_a_checkpoint_goes_on_at_any_number_of_ranks(
    found: list[dict[str, Any]], directory: Path
) -> None:
    for rank in found:
        assert rank["resumed"]["steps"] == [7, 7, 7]
        for ours, theirs in pairwise(rank["resumed"]["losses"]):
            assert ours == pytest.approx(theirs, abs=1e-5)
    assert [rank["resumed"]["saved"] for rank in found] == [[4, 5], []]
    assert sorted(path.name for path in (directory / "two").iterdir()) == [
        "step-00000004",
        "step-00000005",
    ]


def test_each_rank_writes_its_part_and_others_read_them(
    found: list[dict[str, Any]], directory: Path
) -> None:
    assert found
    two, one = directory / "two" / "step-00000004", directory / "one" / "step-00000004"
    names = [path.name for path in two.iterdir()]
    assert tensor_files("model", names) == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert INDEX in names
    sizes = [(two / name).stat().st_size for name in tensor_files("optimizer", names)]
    assert max(sizes) < 1.5 * min(sizes)
    ours, theirs = open_pretrained(two).read_weights(), open_pretrained(one).read_weights()
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    kept = load_checkpoint(two).optimizer, load_checkpoint(one).optimizer
    assert kept[0].keys() == kept[1].keys()


def test_an_overflow_on_one_rank_skips_the_update_on_all(found: list[dict[str, Any]]) -> None:
    first, second = (rank["overflow"] for rank in found)
    assert first == second
    scales, changes = zip(*first.values(), strict=True)
    assert scales == (1024.0, 512.0, 512.0)
    assert changes[1] == 0 < min(changes[0], changes[2])


def test_all_ranks_say_where_a_bad_number_came_from(found: list[dict[str, Any]]) -> None:
    first, second = (rank["diagnosed"] for rank in found)
    assert first == second
    assert "place='output', name='model.layers.1'" in first["output"]
    assert "position=4" in first["output"], "of rank 1's first window"
    assert first["nothing"] == "None"
    assert "place='weight', name='model.embed_tokens.weight'" in first["weight"]
    assert first["rewound"] == 0
    assert first["gathered"] < 1e-5


def test_the_command_trains_and_resumes_sharded(
    start: Start, place: Path, run_alone: RunAlone
) -> None:
    """With nine validation windows, which two ranks do not share evenly, and samples."""
    few = ("--set", "eval.tokens=288", "--set", "checkpoint.every_steps=7")
    options = (*pinned_options(), "--set", "device.sharding=shard", *few)
    train = ("train", "-p", "tiny.yaml", "--out", "run", "--nproc", 2, *options, "--json")
    out, err = start(*train).communicate(timeout=LIMIT_S)
    assert json.loads(out)["steps"] == 20, err
    settings = pinned_keywords() | {"eval__tokens": 288}
    run, alone = Files(place / "run"), run_alone(**settings)
    for ours, theirs in zip(run.course(), alone.course(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert [line["text"][:5] for line in run.lines("samples.jsonl")] == [
        line["text"][:5] for line in alone.lines("samples.jsonl")
    ]
    assert len(list(run.newest.glob("model-*.safetensors"))) == 2


@pytest.mark.parametrize(("rows", "ranks"), [(301, 2), (7, 4), (3, 4), (1, 2), (8, 8)])
def test_rows_are_those_that_torch_gives(rows: int, ranks: int) -> None:
    ours = [list(range(rows))[own_rows(rows, rank, ranks)] for rank in range(ranks)]
    theirs = [part.tolist() for part in torch.arange(rows).chunk(ranks)]
    assert [rows for rows in ours if rows] == theirs


def test_owners_have_about_the_same_to_do() -> None:
    costs = [9.0, 1, 1, 1, 8, 3, 3, 3, 3]
    owners = balanced_owners(costs, 3)
    sums = [sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in range(3)]
    assert max(sums) <= 12
    assert balanced_owners([5.0], 4) == [0]
