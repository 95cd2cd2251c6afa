"""One plan, shown alike by every command that shows one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command

SAID = ("--device", "cpu", "--nproc", 2, "--set", "train.seed=5", "--set", "device.threads=3")
SHOWING = [
    ("train", "-p", "tiny.yaml", "--dry-run"),
    ("device", "info", "-p", "tiny.yaml"),
    ("memory", "-p", "tiny.yaml"),
    ("profiles", "show", "tiny.yaml", "--resolved"),
]
ASSUMED = ("--assume", "cuda:2x24GiB:16c", "--set", "device.kind=auto", "--set", "device.threads=3")


def test_every_command_shows_the_same_plan(llmtrain: Command) -> None:
    documents = [llmtrain(*command, *SAID, "--json").document for command in SHOWING]

    same = ("plan", "derived", "prediction", "limit_bytes", "fits", "assumed", "forecast")
    for name in same:
        shown = [document[name] for document in documents]
        assert shown == shown[:1] * len(SHOWING), name
    settings = [document["settings"] for document in documents[:3]]
    assert settings == settings[:1] * 3
    origins = {path: setting["origin"] for path, setting in settings[0].items()}
    assert origins == documents[3]["origins"]
    assert documents[0]["profile"] == documents[1]["profile"] == documents[2]["profile"]


@pytest.mark.parametrize("command", SHOWING)
def test_who_said_what_is_in_the_document(command: tuple[str, ...], llmtrain: Command) -> None:
    document = llmtrain(*command, *SAID, "--json").document

    plan = document["plan"]
    assert (plan["device"]["value"], plan["device"]["origin"]) == ("cpu", "--device")
    assert (plan["processes"]["value"], plan["processes"]["origin"]) == (2, "--nproc")
    assert (plan["threads"]["value"], plan["threads"]["origin"]) == (3, "--set device.threads=3")
    assert plan["precision"]["origin"] == "plan"


@pytest.mark.parametrize("command", SHOWING)
def test_who_said_what_is_in_the_text(command: tuple[str, ...], llmtrain: Command) -> None:
    lines = llmtrain(*command, *SAID).out.splitlines()

    def line(*words: str) -> bool:
        return any(all(word in line for word in words) for line in lines)

    assert line("seed", "5", "--set train.seed=5")
    assert line("processes", "2", "--nproc")
    assert line("threads", "3", "--set device.threads=3")
    assert line("device", "cpu", "--device")
    assert line("micro_batch", "plan", "tokens, within")
    assert line("fits: ", " on cpu, micro-batch ")


@pytest.mark.parametrize("command", SHOWING)
def test_an_assumed_machine_is_told_before_all_else(
    command: tuple[str, ...], llmtrain: Command
) -> None:
    text = llmtrain(*command, *ASSUMED).out
    first, second = text.splitlines()[:2]
    assert first.removeprefix("# ").startswith("assumed machine cuda:2x24GiB:16c")
    assert "Linux, Python " in second
    assert "2 × assumed GPU, 24 GiB" in text

    outcome = llmtrain(*command, *ASSUMED, "--json")
    document = outcome.document
    assert list(document)[:3] == ["schema_version", "llmtrain", "assumed"]
    assert document["assumed"]["spec"] == "cuda:2x24GiB:16c"
    assert any("nothing is measured" in text for text in document["assumed"]["assumptions"])
    assert document["plan"]["threads"]["origin"] == "--set device.threads=3"
    assert "system" not in document  # what is in use on this machine


@pytest.mark.parametrize("command", SHOWING)
def test_what_is_no_machine_is_refused(command: tuple[str, ...], llmtrain: Command) -> None:
    outcome = llmtrain(*command, "--assume", "cuda:80")
    assert outcome.code == 2
    assert "error: --assume cuda:80: '80' is not a size" in outcome.err
    assert "hint: write cuda:80GiB, " in outcome.err


def test_what_does_not_fit_there_is_refused_as_there(llmtrain: Command) -> None:
    outcome = llmtrain("memory", "-p", "gpu-large", "--assume", "cuda:12GiB")
    assert outcome.code == 3
    assert "92% of the GPU's 12 GiB" in outcome.err


def test_nothing_is_trained_on_an_assumed_machine(llmtrain: Command, place: Path) -> None:
    outcome = llmtrain("train", "-p", "tiny.yaml", "--assume", "cpu:8c:32GiB", "--out", "run")
    assert (outcome.code, (place / "run").exists()) == (2, False)
    assert "hint: add --dry-run" in outcome.err


def test_memory_in_use_is_not_another_machines(llmtrain: Command) -> None:
    outcome = llmtrain("memory", "--assume", "cpu:8c:32GiB")
    assert outcome.code == 2
    hint = outcome.err.partition("hint: ")[2].split()
    assert llmtrain(*hint[1:]).code == 0


@pytest.mark.parametrize("command", [SHOWING[0], SHOWING[1], SHOWING[3]])
def test_what_is_expected_is_told_with_how_it_is_known(
    command: tuple[str, ...], llmtrain: Command
) -> None:
    text = llmtrain(*command, *ASSUMED).out.partition("expected")[2]
    lines = [line.strip("# ") for line in text.splitlines()]
    (steps,) = (line for line in lines if line.startswith("steps"))
    assert all(word in steps for word in ("20", "asked for", "train.steps"))
    (rate,) = (line for line in lines if line.startswith("tokens_per_s"))
    assert rate.endswith("unknown")
    forecast = llmtrain(*command, *ASSUMED, "--json").document["forecast"]
    assert forecast["tokens_per_s"] is None
    assert forecast["steps"]["value"] == 20


def test_resolved_text_is_a_profile(llmtrain: Command, place: Path) -> None:
    text = llmtrain("profiles", "show", "tiny.yaml", "--resolved", *SAID).out
    (place / "again.yaml").write_text(text, encoding="utf-8")

    again = llmtrain("profiles", "show", "again.yaml", "--json").document["profile"]
    plain = llmtrain("profiles", "show", "tiny.yaml", *SAID, "--json").document["profile"]
    resolved = llmtrain("profiles", "show", "tiny.yaml", "--resolved", *SAID, "--json").document
    assert again == plain == resolved["profile"]


def test_resolved_text_says_the_origin_of_every_value_and_what_becomes_of_auto(
    llmtrain: Command,
) -> None:
    lines = llmtrain("profiles", "show", "tiny.yaml", "--resolved", *SAID).out.splitlines()
    values = [line for line in lines if not line.startswith("#") and not line.endswith(":")]
    assert [line for line in values if "  # " not in line] == []
    by_text = ("tokenizer", "prompts")  # known once there is text
    left_open = [
        line for line in values if ": auto" in line and not any(n in line for n in by_text)
    ]
    assert left_open
    assert [line for line in left_open if "; here " not in line] == []


def test_a_run_that_goes_on_is_shown_with_its_own_plan(llmtrain: Command, trained: Path) -> None:
    resumed = ("train", "--out", trained, "--resume", "auto", "-p", trained.parent / "tiny.yaml")
    document = llmtrain(*resumed, "--steps", 40, "--dry-run", "--json").document
    record = llmtrain("runs", "show", trained, "--json").document["record"]

    assert document["profile"]["reason"] == f"of the run in {trained}"
    for name, choice in record["plan"].items():
        assert document["plan"][name] == choice | {"origin": document["plan"][name]["origin"]}
    assert document["settings"]["train.steps"] == {"value": 40, "origin": "--steps"}
