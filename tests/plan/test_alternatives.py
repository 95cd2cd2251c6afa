"""Where a run does not fit, commands are named that would, and they do."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from llmtrain.cli.app import run
from llmtrain.cli.arguments import without_options
from llmtrain.errors import DoesNotFitError
from llmtrain.machine.probe import read_facts
from llmtrain.plan import memory_fit
from llmtrain.plan.alternatives import alternatives
from llmtrain.plan.memory import libraries_bytes
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile


def profile(*assignments: str) -> Profile:
    return load_profile("cpu-small", environment={}, assignments=assignments).profile


def needing(bytes_of: Any, limit: int) -> Any:
    """A prediction that refuses what needs more than the limit."""

    def predicted_bytes(changed: Profile) -> int:
        if bytes_of(changed) > limit:
            raise DoesNotFitError("too large")
        return int(bytes_of(changed))

    return predicted_bytes


def test_what_costs_nothing_comes_first_and_there_are_three() -> None:
    asked = profile(
        "train.micro_batch=8", "device.activation_checkpointing=selective", "optim.name=adamw"
    )
    ways = alternatives(asked, lambda changed: 1 << 20)
    assert [way.options for way in ways] == [
        ("--set=train.micro_batch=auto",),
        ("--set=device.activation_checkpointing=auto",),
        ("--set=optim.name=muon",),
    ]
    assert ways[0].outcome == "1 MiB: the same training in smaller parts"


def test_of_each_kind_the_smallest_change_that_fits_is_taken() -> None:
    size = lambda changed: changed.model.context * changed.model.num_layers  # noqa: E731
    whole = profile("optim.name=muon").model
    assert (whole.context, whole.num_layers) == (512, 7)
    ways = alternatives(profile("optim.name=muon"), needing(size, 128 * 7))
    assert ways[0].options == ("--set=model.context=128",)
    assert ways[0].predicted_bytes == 128 * 7
    assert not any("num_layers" in option for way in ways for option in way.options)


def test_the_largest_smaller_profile_is_the_last_way_out() -> None:
    size = lambda changed: changed.model.hidden_size  # noqa: E731
    small = load_profile("cpu-mini", environment={}).profile.model.hidden_size
    ways = alternatives(profile("optim.name=muon"), needing(size, small))
    assert [way.options for way in ways] == [("--profile=cpu-mini",)]
    assert ways[0].in_place_of == {"--profile", "-p", "--set"}


def test_nothing_is_named_where_nothing_fits() -> None:
    assert alternatives(profile(), needing(lambda changed: 2, 1)) == []


def test_options_that_another_stands_for_go_with_their_values() -> None:
    typed = [
        "memory",
        "-p",
        "big",
        "--set",
        "a=b",
        "--json",
        "--set=c=d",
        "--profile=x",
        "--nproc",
        "2",
    ]
    kept = list(without_options(typed, {"--profile", "-p", "--set"}))
    assert kept == ["memory", "--json", "--nproc", "2"]


@pytest.mark.parametrize("limit", [0.05, 0.03])
def test_the_commands_that_are_named_work(
    limit: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    facts = read_facts()
    more = libraries_bytes("cpu", facts.torch_build) - libraries_bytes("cpu")
    limit += more / facts.cpu.usable_memory_bytes  # of a build for CUDA
    monkeypatch.setitem(memory_fit._USABLE_MEMORY, "cpu", limit)
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path))
    asked = ["memory", "--profile", "cpu-medium", "--force-cpu", "--set", "optim.name=adamw"]
    assert run(asked) == 3
    told = capsys.readouterr().err.replace("\n", " ")
    commands = [part.split(" # ")[0].strip() for part in told.split("hint:")[1:]]
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "llmtrain"
        assert run(words[1:]) == 0, command
    capsys.readouterr()


def test_a_model_that_is_continued_keeps_its_shape() -> None:
    size = lambda changed: changed.model.num_layers  # noqa: E731
    assert alternatives(profile("model.init_from=a-model"), needing(size, 2)) == []
    ways = alternatives(profile("model.init_from=a-model"), lambda changed: 1 << 20)
    assert [way.options for way in ways] == [("--set=model.context=256",)]
