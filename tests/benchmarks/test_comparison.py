"""Every system trains the same model on as many tokens a step, as far as that can be said."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import shape_of
from tests.benchmarks.compare import main
from tests.benchmarks.comparison import Comparison, missing_packages
from tests.benchmarks.naive import NaiveGpt2
from tests.benchmarks.shapes import SHAPES, gpt2_mlp_width


@pytest.mark.parametrize(("shape", "millions"), [("tiny", 3.4), ("S", 26.5), ("M", 116.6)])
def test_shapes_have_the_parameters_that_they_are_known_by(shape: str, millions: float) -> None:
    parameters = shape_of(SHAPES[shape].model).parameters
    assert round(parameters / 1e6, 1) == millions


@pytest.mark.parametrize("name", SHAPES)
def test_the_mlp_of_gpt2_has_the_weights_of_swiglu(name: str) -> None:
    inner = SHAPES[name].model.intermediate_size
    assert 2 * gpt2_mlp_width(inner) == 3 * inner


@pytest.mark.parametrize("name", SHAPES)
def test_the_naive_model_differs_from_ours_by_positions_and_gains_only(name: str) -> None:
    section = SHAPES[name].model
    with torch.device("meta"):
        model = NaiveGpt2(section)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    shape = shape_of(section)
    ours = shape.embedding_parameters + shape.num_layers * shape.block_matrix_parameters
    assert matrices == ours + section.context * section.hidden_size


def test_the_llama_differs_from_ours_by_query_and_key_norms_only() -> None:
    pytest.importorskip("transformers")
    from transformers import LlamaForCausalLM

    from tests.benchmarks.hf import llama_config

    section = SHAPES["S"].model
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(section))
    plain = shape_of(section.model_copy(update={"qk_norm": False}))
    assert sum(p.numel() for p in model.parameters()) == plain.parameters


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_set_for_ours_is_a_profile_of_that_shape(comparison: Comparison, name: str) -> None:
    shape = SHAPES[name]
    wanted = replace(comparison, shape=shape).own_assignments
    profile = load_profile(shape.profile, environment={}, assignments=wanted).profile
    assert profile.model == shape.model
    assert profile.train.tokens_per_step == shape.micro_batch * shape.model.context
    assert profile.train.micro_batch == shape.micro_batch
    assert profile.device.threads == 1
    assert profile.eval.sample_every_steps is None


def test_what_the_user_sets_has_the_last_word(comparison: Comparison) -> None:
    asked = replace(comparison, assignments=("eval.tokens=700", "device.compile=false"))
    profile = load_profile(
        comparison.shape.profile, environment={}, assignments=asked.own_assignments
    ).profile
    assert profile.eval.tokens == 700
    assert profile.device.compile is False


def test_processes_of_ours_each_take_a_micro_batch(comparison: Comparison) -> None:
    asked = replace(comparison, nproc=3)
    assert asked.tokens_per_step("ours") == 3 * comparison.tokens_per_step("naive")
    assert asked.threads_in_all == 3
    assert replace(asked, threads=None).threads_in_all is None


def test_a_missing_package_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["--shape", "tiny", "--systems", "ours,hf"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "extra `bench`" in said
    assert "--systems ours" in said


def test_what_needs_no_extra_is_never_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing_packages(["ours", "naive", "nanogpt"]) == []
    assert missing_packages(["hf", "hf-fp32"]) == ["transformers", "accelerate"]


@pytest.mark.parametrize(
    "arguments",
    [["--systems", "ours,other"], ["--systems", "nanogpt"], ["--rounds", "0"], ["--shape", "XL"]],
)
def test_a_command_that_cannot_be_run_ends_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
