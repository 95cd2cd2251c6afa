"""The profiles that come with llmtrain: their sizes, what is shown of them, and a plan."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from llmtrain.cli.app import run
from llmtrain.machine.facts import CpuFacts, Facts
from llmtrain.model.decoder import Decoder
from llmtrain.plan.auto_profile import choose_tokens_per_step
from llmtrain.plan.planner import make_plan
from llmtrain.plan.workload import Workload
from llmtrain.profile.load import known_paths, load_profile, profile_from_values, shipped_profiles
from llmtrain.profile.schema import ModelSection, Profile
from llmtrain.profile.shape import ModelShape, shape_of

# name: vocabulary, layers, hidden, intermediate, parameters
SIZES = {
    "cpu-tiny": (4096, 6, 192, 512, 3.444e6),
    "cpu-mini": (8192, 5, 384, 1024, 12.0e6),
    "cpu-small": (8192, 7, 512, 1408, 26.7e6),
    "cpu-medium": (16384, 14, 768, 2304, 119.9e6),
    "gpu-small": (50304, 12, 768, 2048, 123.6e6),
    "gpu-medium": (50304, 24, 1024, 2816, 360e6),
    "gpu-large": (50304, 28, 2048, 5632, 1.54e9),
    "mps-small": (32000, 8, 512, 1408, 42e6),
}

FINETUNING = {"finetune-cpu", "finetune-gpu"}  # their shape is that of the model

LARGE_BOX = Facts(
    system="Linux",
    python_version="3.12.0",
    torch_version="2.13.0",
    torch_build="cpu",
    cpu=CpuFacts(
        model="a large one",
        architecture="x86_64",
        physical_cores=64,
        logical_cores=128,
        sockets=2,
        affinity_cores=128,
        quota_cores=None,
        isa=("avx2",),
        memory_total_bytes=512 * 2**30,
        memory_limit_bytes=None,
    ),
    backends=("gloo",),
)


def test_the_table_is_complete() -> None:
    assert set(shipped_profiles()) == set(SIZES) | FINETUNING


@pytest.mark.parametrize("name", sorted(FINETUNING))
def test_a_profile_for_fine_tuning_has_no_shape(name: str) -> None:
    profile = load_profile(name, environment={}).profile
    default = ModelSection()
    assert profile.name == name
    assert profile.model == default.model_copy(update={"context": profile.model.context})
    assert (profile.data.rows, profile.optim.name, profile.device.kind) == ("chat", "adamw", "auto")


@pytest.mark.parametrize("name", SIZES)
def test_a_profile_has_the_size_it_says(name: str) -> None:
    vocab_size, layers, hidden, intermediate, parameters = SIZES[name]
    model = load_profile(name, environment={}).profile.model
    found = (model.vocab_size, model.num_layers, model.hidden_size, model.intermediate_size)
    assert found == (vocab_size, layers, hidden, intermediate)
    assert shape_of(model).parameters == pytest.approx(parameters, rel=0.005)
    first_line = shipped_profiles()[name].read_text(encoding="utf-8").splitlines()[0]
    number, unit = first_line.split()[1][:-1], first_line.split()[1][-1]
    exact = shape_of(model).parameters / {"M": 1e6, "B": 1e9}[unit]
    assert float(number) == round(exact, len(number.partition(".")[2]))


@pytest.mark.parametrize("name", SIZES)
def test_a_large_cpu_plans_it(name: str) -> None:
    profile = load_profile(name, environment={}).profile
    assert profile.name == name
    tokens_per_step = choose_tokens_per_step(profile, LARGE_BOX).value
    workload = Workload(shape_of(profile.model), tokens_per_step)
    plan = make_plan(LARGE_BOX, profile.device, workload)
    assert (plan.device.value, plan.precision.value, plan.processes.value) == ("cpu", "fp32", 1)
    tokens = plan.micro_batch.value * plan.accumulation.value * profile.model.context
    assert tokens == tokens_per_step


@pytest.mark.parametrize("name", SIZES)
def test_a_profile_leaves_the_machine_to_the_plan(name: str) -> None:
    profile = load_profile(name, environment={}).profile
    assert profile.device == Profile().device
    assert profile.train.micro_batch == "auto"
    said = (profile.train.steps, profile.train.tokens, profile.train.time)
    assert sum(horizon is not None for horizon in said) == 1


@pytest.mark.parametrize("name", SIZES)
def test_what_is_shown_is_the_same_profile(
    name: str, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profiles", "show", name]) == 0
    path = tmp_path_factory.mktemp("shown") / "shown.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    original = load_profile(name, environment={}).profile
    assert load_profile(str(path), environment={}).profile == original
    assert profile_from_values(json.loads(json.dumps(original.values())), "run.yaml") == original


def test_what_is_shown_names_the_file_and_line_of_every_value_that_is_not_a_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["profiles", "show", "cpu-tiny", "--json", "--set", "train.seed=3"]) == 0
    document = json.loads(capsys.readouterr().out)
    lines = shipped_profiles()["cpu-tiny"].read_text(encoding="utf-8").splitlines()
    assert document["origins"]["train.seed"] == "--set train.seed=3"
    assert document["origins"]["model.qk_norm"] == "default"
    file, line = document["origins"]["model.hidden_size"].split(":")
    assert file == "cpu-tiny.yaml"
    assert lines[int(line) - 1].strip() == "hidden_size: 192"
    assert set(document["origins"]) <= set(known_paths())


def test_the_schema_has_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert sorted(_schema_paths(schema, schema, "")) == sorted(known_paths())
    for name in schema["$defs"].values():
        assert name["additionalProperties"] is False
    assert schema["additionalProperties"] is False


def _schema_paths(node: dict, whole: dict, prefix: str) -> Iterator[str]:  # type: ignore[type-arg]
    for name, value in node["properties"].items():
        reference = value.get("$ref") or (value.get("allOf") or [{}])[0].get("$ref", "")
        if reference:
            yield from _schema_paths(
                whole["$defs"][reference.removeprefix("#/$defs/")], whole, f"{prefix}{name}."
            )
        else:
            assert {"type", "anyOf", "enum", "const"} & set(value), name
            yield prefix + name


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kv_heads", ["auto", 2])
def test_parameters_are_those_of_the_model(tie: bool, qk_norm: bool, kv_heads: object) -> None:
    section = ModelSection.model_validate(
        {
            "vocab_size": 321,
            "hidden_size": 60,
            "intermediate_size": 77,
            "num_layers": 3,
            "num_heads": 6,
            "num_kv_heads": kv_heads,
            "head_dim": 14,
            "context": 16,
            "qk_norm": qk_norm,
            "tie_embeddings": tie,
        }
    )
    with torch.device("meta"):
        model = Decoder(shape_of(section))
    assert shape_of(section).parameters == sum(p.numel() for p in model.parameters())


def test_operations_against_a_count_by_hand() -> None:
    shape = ModelShape(
        vocab_size=500,
        hidden_size=8,
        intermediate_size=10,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        context=16,
        rope_theta=1e4,
        norm_epsilon=1e-6,
        qk_norm=True,
        tie_embeddings=False,
    )
    query, keys, values, output, feed_forward = 8 * 24, 8 * 12, 8 * 12, 24 * 8, 3 * 8 * 10
    matrices = 2 * (query + keys + values + output + feed_forward) + 500 * 8
    # on average a token sees half of the context, with scores and values: 2·2·24·8 a layer
    attention = 2 * (2 * 2 * 24 * 8)
    assert shape.training_flops_per_token == 3 * (2 * matrices + attention)
