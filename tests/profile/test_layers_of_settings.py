"""Who wins where a value is said twice, and that every value knows who said it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pytest

from llmtrain.errors import UsageError
from llmtrain.profile.load import LoadedProfile, load_profile, profile_layer
from llmtrain.profile.setting import Setting

LAYERS = ("file", "environment", "set", "flag")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def load(
    file: Path, layers: tuple[str, ...], values: Mapping[str, tuple[str, object]]
) -> LoadedProfile:
    """Each of `layers` says one setting; those not named say nothing."""
    said = {layer: values[layer] for layer in layers}
    path, value = said.get("file", ("train.seed", 0))
    section, key = path.split(".")
    file.write_text(f"# a comment\n{section}:\n  {key}: {value}\n" if "file" in said else "")
    environment = {"HOME": "/", "LLMTRAIN_CACHE_DIR": "/cache"}
    if "environment" in said:
        path, value = said["environment"]
        environment["LLMTRAIN_" + path.upper().replace(".", "__")] = str(value)
    assignments = ["{}={}".format(*said["set"])] if "set" in said else []
    flags = {said["flag"][0]: Setting(said["flag"][1], "--flag")} if "flag" in said else {}
    return load_profile(str(file), environment=environment, assignments=assignments, flags=flags)


@pytest.mark.parametrize(
    "layers", [c for n in range(5) for c in combinations(LAYERS, n)], ids=lambda c: "+".join(c)
)
def test_the_highest_layer_wins_and_is_the_origin(file: Path, layers: tuple[str, ...]) -> None:
    values = {layer: ("model.context", 8 + number) for number, layer in enumerate(LAYERS)}
    loaded = load(file, layers, values)
    origins = {
        "file": f"{file}:3",
        "environment": "environment LLMTRAIN_MODEL__CONTEXT",
        "set": "--set model.context=10",
        "flag": "--flag",
    }
    if layers:
        assert loaded.profile.model.context == values[layers[-1]][1]
        assert loaded.origin_of("model.context") == origins[layers[-1]]
    else:
        assert loaded.profile.model.context == 512
        assert loaded.origin_of("model.context") == "default"


@pytest.mark.parametrize("layers", [c for n in (1, 2, 3, 4) for c in combinations(LAYERS, n)])
def test_of_the_horizons_the_highest_layers_counts(file: Path, layers: tuple[str, ...]) -> None:
    values: dict[str, tuple[str, object]] = {
        "file": ("train.steps", 7),
        "environment": ("train.tokens", "2M"),
        "set": ("train.time", "30m"),
        "flag": ("train.steps", 9),
    }
    train = load(file, layers, values).profile.train
    expected = {
        "file": (7, None, None),
        "environment": (None, 2_000_000, None),
        "set": (None, None, 1800.0),
        "flag": (9, None, None),
    }
    assert (train.steps, train.tokens, train.time) == expected[layers[-1]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train.steps=5", "train.tokens=5M"),
        ("train.time=5m", "train.steps=5"),
        ("checkpoint.every_steps=5", "checkpoint.every_minutes=5"),
    ],
)
def test_two_horizons_in_one_layer_are_an_error(file: Path, one: str, other: str) -> None:
    with pytest.raises(UsageError, match="are both set; keep one of") as caught:
        load_profile("cpu-tiny", environment={}, assignments=[one, other])
    assert f"--set {one}" in caught.value.message
    assert f"--set {other}" in caught.value.message
    section, key = one.split("=")[0].split(".")
    key_2 = other.split("=")[0].split(".")[1]
    pair = one.split("=")[1], other.split("=")[1]
    file.write_text(f"{section}:\n  {key}: {pair[0]}\n  {key_2}: {pair[1]}\n")
    with pytest.raises(UsageError, match="are both set") as caught:
        load_profile(str(file), environment={})
    assert f"{file}:2" in caught.value.message
    assert f"{file}:3" in caught.value.message


def test_an_unset_horizon_leaves_those_below(file: Path) -> None:
    file.write_text("train: {steps: 7}")
    loaded = load_profile(str(file), environment={}, assignments=["train.time=null"])
    assert (loaded.profile.train.steps, loaded.profile.train.time) == (7, None)


def test_a_later_assignment_replaces_an_earlier_one() -> None:
    loaded = load_profile(environment={}, assignments=["train.seed=1", "train.seed=2"])
    assert loaded.profile.train.seed == 2


def test_a_section_that_is_assigned_leaves_the_keys_it_does_not_name(file: Path) -> None:
    file.write_text("model: {hidden_size: 96, num_heads: 3, context: 64}")
    assignment = "model={context: 32, num_layers: 2}"
    loaded = load_profile(
        str(file), environment={"LLMTRAIN_MODEL__NUM_LAYERS": "5"}, assignments=[assignment]
    )
    model = loaded.profile.model
    assert (model.hidden_size, model.num_heads, model.context, model.num_layers) == (96, 3, 32, 2)
    assert loaded.origin_of("model.context") == f"--set {assignment}"
    assert loaded.origin_of("model.hidden_size") == f"{file}:1"


def test_an_empty_section_of_a_file_says_nothing(file: Path) -> None:
    file.write_text("model:\n  # context: 64\ntrain:\n  seed: 4\n")
    loaded = load_profile(str(file), environment={}, assignments=["model.context=16"])
    assert (loaded.profile.model.context, loaded.profile.train.seed) == (16, 4)


def test_a_file_is_named_after_itself_unless_it_says_otherwise(file: Path) -> None:
    file.write_text("")
    assert load_profile(str(file), environment={}).profile.name == "mine"
    file.write_text("name: other")
    assert load_profile(str(file), environment={}).profile.name == "other"


def test_dotted_keys_mean_the_same_as_sections(file: Path) -> None:
    file.write_text("model.context: 64\n")
    assert profile_layer(str(file))["model.context"] == Setting(64, f"{file}:1")


def test_the_environment_is_read_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_TRAIN__SEED", "11")
    monkeypatch.setenv("LLMTRAIN_OUTCOME_FILE", "no section: not a setting")
    assert load_profile().profile.train.seed == 11
