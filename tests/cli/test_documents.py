"""`--json` prints one document with the keys of the contract, and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain.machine.facts import RunFigures
from tests.cli.conftest import Command, ProcessCommand

MEMORY_KEYS = {"total_bytes", "available_bytes", "used_bytes", "percent"}


def test_train(llmtrain: Command, place: Path) -> None:
    document = llmtrain("train", "-p", "tiny.yaml", "--out", "run", "--json").document

    assert set(document) - {"schema_version", "llmtrain"} == {
        *("run", "checkpoint", "steps", "tokens", "seconds", "tokens_per_s", "train_loss"),
        *("val_loss", "val_bpb", "peak_memory_bytes", "energy_joules", "predicted", "stopped"),
    }
    assert (document["run"], document["stopped"]) == ("run", "done")
    assert (document["steps"], document["tokens"]) == (20, 5120)
    assert Path(document["checkpoint"]).is_dir()
    assert document["predicted"]["peak_memory_bytes"] > 0
    assert document["peak_memory_bytes"] > 0
    assert 0 < document["val_bpb"] < 8


def test_dry_run_trains_nothing(llmtrain: Command, place: Path) -> None:
    before = sorted(place.rglob("*"))

    document = llmtrain("train", "-p", "tiny.yaml", "--out", "run", "--dry-run", "--json").document

    assert all(set(c) == {"value", "reason", "origin"} for c in document["plan"].values())
    assert document["fits"] is True
    assert document["prediction"]["total_bytes"] <= document["limit_bytes"]
    assert sorted(place.rglob("*")) == before


def test_eval(llmtrain: Command, trained: Path) -> None:
    document = llmtrain("eval", trained, "--json").document

    assert {
        *("loss_nats_per_token", "perplexity", "bits_per_byte", "tokens", "bytes", "baselines"),
    } <= set(document)
    assert document["perplexity"] == pytest.approx(2.718281828 ** document["loss_nats_per_token"])
    assert document["baselines"]["uniform_bpb"] > document["bits_per_byte"]


def test_memory_now(llmtrain: Command) -> None:
    document = llmtrain("memory", "--json").document

    assert set(document["system"]) >= MEMORY_KEYS
    assert set(document["process"]) >= MEMORY_KEYS
    assert isinstance(document["accelerators"], list)
    assert 0 < document["process"]["used_bytes"] < document["system"]["total_bytes"]
    assert document["cgroup"] is None or set(document["cgroup"]) >= MEMORY_KEYS
    assert all(set(gpu) >= MEMORY_KEYS for gpu in document["accelerators"])
    assert "prediction" not in document


def test_memory_of_a_profile(llmtrain: Command) -> None:
    document = llmtrain("memory", "-p", "tiny.yaml", "--json").document

    parts = dict(document["prediction"])
    total = parts.pop("total_bytes")
    assert {"parameters_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes"} <= set(
        parts
    )
    assert sum(parts.values()) == total
    assert document["fits"] is (total <= document["limit_bytes"])
    assert "system" in document


def test_device_info(llmtrain: Command) -> None:
    document = llmtrain("device", "info", "-p", "tiny.yaml", "--json").document

    assert {
        *("model", "physical_cores", "usable_cores", "isa"),
        *("memory_total_bytes", "memory_limit_bytes"),
    } <= set(document["cpu"])
    assert {"platform", "accelerators"} <= set(document)
    assert {"device", "precision", "threads", "backend", "compile"} <= set(document["plan"])
    assert all(choice["reason"] for choice in document["plan"].values())
    assert document["profile"] == {"value": "tiny", "reason": "asked for"}


def test_device_info_picks_a_profile(llmtrain: Command) -> None:
    document = llmtrain("device", "info", "--force-cpu", "--json").document

    assert document["plan"]["device"] == {
        "value": "cpu",
        "reason": "device.force_cpu is set",
        "origin": "--force-cpu",
    }
    assert document["profile"]["value"]
    assert document["profile"]["reason"]


def test_profiles(llmtrain: Command) -> None:
    listed = llmtrain("profiles", "list", "--json").document["profiles"]
    assert {"cpu-tiny", "cpu-small", "gpu-small", "mps-small"} <= {row["name"] for row in listed}
    for row in listed:
        shown = llmtrain("profiles", "show", row["name"], "--json").document
        assert shown["profile"]["model"]["context"] == row["context"]
        valid = llmtrain("profiles", "validate", row["name"], "--json").document
        assert (valid["valid"], valid["parameters"]) == (True, row["parameters"])


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_a_section_within_a_section_is_shown_as_it_is_read(llmtrain: Command, place: Path) -> None:
    text = "data:\n  filters:\n    min_bytes: 20\n    languages: [en, de]\n"
    (place / "filters.yaml").write_text(text)
    shown = llmtrain("profiles", "show", "filters.yaml").out
    assert "    min_bytes: 20                         # filters.yaml:3\n" in shown
    (place / "again.yaml").write_text(shown)
    first, again = (
        llmtrain("profiles", "show", name, "--json").document["profile"]
        for name in ("filters.yaml", "again.yaml")
    )
    assert first == again
    assert first["data"]["filters"] == {"min_bytes": 20, "languages": ["en", "de"]}


def test_every_value_of_a_shown_profile_has_an_origin(llmtrain: Command) -> None:
    document = llmtrain("profiles", "show", "tiny.yaml", "--set", "train.seed=5", "--json").document

    assert set(document["origins"]) == set(leaves(document["profile"]))
    assert document["origins"]["train.seed"] == "--set train.seed=5"
    assert document["origins"]["model.context"].startswith("tiny.yaml:")
    assert document["origins"]["optim.beta1"] == "default"


def test_runs(llmtrain: Command, trained: Path) -> None:
    (row,) = llmtrain("runs", "list", trained.parent, "--json").document["runs"]
    assert (row["profile"], row["step"], row["tokens"], row["status"]) == ("tiny", 20, 5120, "done")
    assert row["checkpoints"] == ["step-00000010", "step-00000020"]

    shown = llmtrain("runs", "show", trained, "--json").document
    assert {name: shown[name] for name in row} == row
    assert shown["record"]["plan"]["device"]["value"] == "cpu"


def test_tokenizer(llmtrain: Command) -> None:
    made = llmtrain(
        *("tokenizer", "train", "--data", "corpus.txt", "--vocab-size", 320, "--out", "t"), "--json"
    ).document
    assert (made["vocab_size"], made["out"]) == (320, "t")

    seen = llmtrain("tokenizer", "inspect", "--tokenizer", "t", "--json").document
    assert seen["vocab_size"] == 320


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "-p", "tiny.yaml", "--data", "corpus.txt"),
        ("train", "-p", "tiny.yaml", "--data", "corpus.txt", "--json", "-v"),
        ("device", "info", "-p", "tiny.yaml"),
        ("profiles", "list"),
        ("train", "-p", "nonesuch"),
    ],
)
def test_plain_lines_off_a_terminal(arguments: tuple[str, ...], process: ProcessCommand) -> None:
    done: subprocess.CompletedProcess[bytes] = process(*arguments)

    for stream in (done.stdout, done.stderr):
        assert b"\x1b" not in stream
        assert b"\r" not in stream
        assert b"\b" not in stream


def test_memory_of_a_profile_that_is_measured(
    llmtrain: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next forecast is the rate of a run that had the cores to itself, and of no other."""
    outcome = llmtrain("memory", "-p", "tiny.yaml", "--calibrate", "--json")
    measured = outcome.document["measured"]
    assert measured["steps"] == 8
    assert measured["peak_memory_bytes"] > 50 << 20
    again = llmtrain("memory", "-p", "tiny.yaml")
    assert "measured: " in again.out
    assert "in a run of 8 steps " in again.out
    for is_contended, source in ((False, "measured"), (True, "estimated")):
        monkeypatch.setattr(RunFigures, "is_contended", is_contended)
        document = llmtrain("train", "-p", "tiny.yaml", "--dry-run", "--json").document
        rate = document["forecast"]["tokens_per_s"]
        assert rate["source"] == source
        assert (rate["value"] == measured["tokens_per_s"]) != is_contended


@pytest.mark.parametrize(
    "options", [("--calibrate",), ("-p", "tiny.yaml", "--calibrate", "--assume", "cpu:8c:32GiB")]
)
def test_what_cannot_be_measured_is_refused(
    options: tuple[str, ...], llmtrain: Command, place: Path
) -> None:
    assert llmtrain("memory", *options).code == 2
