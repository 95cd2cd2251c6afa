"""What is published: a schema for every document and line, and a page that names every key.

After a change that is meant, rewrite the page:

    python -m pytest tests/cli/test_schemas.py --write-snapshots
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator, ValidationError

import llmtrain as package
from llmtrain.cli.output import Output
from llmtrain.documents import plans
from llmtrain.documents.published import PUBLISHED, published_schema
from llmtrain.documents.runs import RunsShow
from llmtrain.machine.live_memory import LiveMemory
from llmtrain.machine.memory_readings import AcceleratorMemory
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.plan.planner import Plan
from llmtrain.profile.load import load_profile
from llmtrain.train.distributed.world import World
from llmtrain.train.divergence.policy import Jump
from llmtrain.train.events import Step, metrics_line
from llmtrain.train.logger import TrainLogger
from llmtrain.train.run_directory.directory import RunDirectory
from tests.cli.conftest import Command, Snapshot, complaints
from tests.cli.json_page import page
from tests.cli.test_help import COMMANDS
from tests.test_layers import loaded_after

DOCS = Path(__file__).parent.parent.parent / "docs" / "reference" / "json.md"
FILES = {"metrics.jsonl", "samples.jsonl", "run.yaml"}
OF_AN_OPTION = {
    "eval-compared",
    "train-dry-run",
    "finetune-dry-run",
    "data-inspect-chat",
    "memory-profile",
    "profiles-show-resolved",
}


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object with keys that a schema describes."""
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            yield schema
        for inner in schema.values():
            yield from objects(inner)


def test_what_has_a_document_has_a_schema_and_the_other_way_round() -> None:
    printing = {
        path.replace(" ", "-")
        for path, command in COMMANDS.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert printing | OF_AN_OPTION | FILES | {"error"} == set(PUBLISHED)


def test_every_command_with_a_result_can_be_asked_for_a_document() -> None:
    silent = {
        path
        for path, command in COMMANDS.items()
        if path and not hasattr(command, "commands")
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert silent == {"profiles schema", "chat"}  # JSON anyway, and a conversation


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_schema_is_one_and_says_all(name: str) -> None:
    schema = published_schema(name)

    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for shape in objects(schema):
        assert shape["description"]
        for key, value in shape["properties"].items():
            assert value.get("description"), key
            assert key in shape.get("required", []) or "missing" in value["description"], key
            assert "default" not in value


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - FILES))
def test_a_document_has_its_versions(name: str) -> None:
    schema = published_schema(name)
    assert {"schema_version", "llmtrain"} <= set(schema["required"])
    assert schema["properties"]["schema_version"]["const"] == package.SCHEMA_VERSION


def test_a_key_that_nobody_described_is_seen(llmtrain: Command) -> None:
    document = llmtrain("profiles", "validate", "tiny.yaml", "--json").document
    assert complaints("profiles-validate", document | {"size": 1})
    assert complaints("profiles-validate", {**document, "parameters": "3M"})
    del document["parameters"]
    assert complaints("profiles-validate", document)


def test_a_key_that_is_added_later_breaks_no_program(llmtrain: Command) -> None:
    document = llmtrain("memory", "--json").document
    document["system"]["pressure"] = 0.1
    Draft202012Validator(published_schema("memory")).validate(document)


def test_nested_keys_are_described_too(llmtrain: Command) -> None:
    document = llmtrain("device", "info", "-p", "tiny.yaml", "--json").document
    document["plan"]["threads"]["colour"] = "red"
    assert any("colour" in complaint for complaint in complaints("device-info", document))


def test_plan_and_prediction_are_described_as_they_are() -> None:
    assert list(plans.Plan.model_fields) == [field.name for field in fields(Plan)]
    assert list(plans.Prediction.model_fields) == [
        *(field.name for field in fields(MemoryPrediction)),
        "total_bytes",
    ]


def test_the_page_names_every_key(snapshot: Snapshot) -> None:
    text = DOCS.read_text(encoding="utf-8")
    written, mark, _ = text.partition("--write-snapshots -->\n\n")
    assert mark
    tables = page()
    snapshot(DOCS, written + mark + tables)
    for name in PUBLISHED:
        assert f"### {name}\n" in tables
        for shape in objects(published_schema(name)):
            assert all(f"| `{key}` |" in tables for key in shape["properties"]), name


def test_the_pages_program_validates(
    llmtrain: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: dict[str, str] = {}

    def run(words: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(stdout=printed.get(words[1]) or llmtrain(*words[1:]).out)

    text = DOCS.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    program = place / "program.py"
    program.write_text(text, encoding="utf-8")
    monkeypatch.setattr("subprocess.run", run)
    runpy.run_path(str(program))
    printed["memory"] = '{"system": null}'
    with pytest.raises(ValidationError):
        runpy.run_path(str(program))


def test_schemas_need_no_torch() -> None:
    loaded = loaded_after("import llmtrain.cli.schema, llmtrain.documents.published")
    assert "llmtrain.documents.runs" in loaded
    assert not loaded & {"torch", "numpy"}


def test_every_link_of_the_page_leads_somewhere() -> None:
    text = DOCS.read_text(encoding="utf-8")
    headings = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings))
    linked = {part.partition(")")[0] for part in text.split("](#")[1:]}
    assert linked <= {heading.replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PUBLISHED)
def test_schemas_are_printed(name: str, llmtrain: Command) -> None:
    outcome = llmtrain("schema", name)
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out) == published_schema(name)


def test_schemas_are_listed(llmtrain: Command) -> None:
    listed = llmtrain("schema", "--json").document["schemas"]
    assert [row["name"] for row in listed] == list(PUBLISHED)
    lines = llmtrain("schema").out.splitlines()
    assert [line.split()[0] for line in lines] == list(PUBLISHED)


def test_an_unknown_schema_is_refused(llmtrain: Command) -> None:
    outcome = llmtrain("schema", "devic-info")
    assert outcome.code == 2
    assert "hint: llmtrain schema device-info" in outcome.err


def test_no_document_has_what_json_has_no_word_for(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"a": float("nan"), "b": [float("inf"), {"c": (1.5, -float("inf"))}]}
    values = {"run": "r", "profile": None, "step": 1, "tokens": 1, "train_loss": float("nan")}
    values |= {"val_loss": None, "val_bpb": None, "best_val_loss": float("inf")}
    Output().document(
        RunsShow.of(
            **values,
            elapsed_s=1.0,
            checkpoints=[],
            status="done",
            state="finished",
            started=None,
            tags=[],
            record=record,
        )
    )
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (document["train_loss"], document["best_val_loss"]) == (None, None)
    assert document["record"] == {"a": None, "b": [None, {"c": [1.5, None]}]}


def test_what_is_tokenized_and_generated(llmtrain: Command, trained: Path) -> None:
    at = ("--tokenizer", trained / "checkpoints" / "step-00000020")
    text = "abc def\u0085\n"
    ids = llmtrain("tokenizer", "encode", *at, "--json", stdin=text.encode()).document
    assert ids["tokens"] == len(ids["ids"]) > 0
    words = " ".join(map(str, ids["ids"])).encode()
    assert llmtrain("tokenizer", "decode", *at, "--json", stdin=words).document["text"] == text

    said = ("generate", trained, "--prompt", "ab", "--max-tokens", 5, "--seed", 3)
    document = llmtrain(*said, "--json").document
    assert llmtrain(*said).out == document["prompt"] + document["text"] + "\n"
    assert (document["prompt"], document["seed"]) == ("ab", 3)


def test_the_files_of_a_run(trained: Path) -> None:
    record = yaml.safe_load((trained / "run.yaml").read_text(encoding="utf-8"))
    assert complaints("run.yaml", record) == []
    assert record["schema_version"] == package.SCHEMA_VERSION
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = (trained / name).read_text(encoding="utf-8").splitlines()
        assert lines
        for line in lines:
            assert complaints(name, json.loads(line)) == []


@pytest.mark.parametrize("peak_bytes", [None, 1000])
@pytest.mark.parametrize("available_bytes", [None, 400])
def test_steps_on_a_gpu(peak_bytes: int | None, available_bytes: int | None) -> None:
    gpu = AcceleratorMemory("cuda", 0, "a GPU", 2000, available_bytes, 700, 900, peak_bytes)
    memory = LiveMemory(500, available_bytes, None, gpu)
    step = Step(1, 256, 6.0, 1e-3, 1.0, 100.0, None, memory, 2.0, None, None, is_logged=True)
    line = metrics_line(step)
    assert line["accelerator_allocated_bytes"] == 700
    assert complaints("metrics.jsonl", line) == []


def test_lines_about_trouble(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    profile = load_profile("cpu-tiny", environment={}).profile
    logger = TrainLogger(
        directory,
        lambda event: None,
        profile.train,
        World(),
        torch.device("cpu"),
        first_step=7,
        flops_per_token=1.0,
        peak_flops=None,
        text_tokens=100,
    )
    logger.log_skipped(7, "the loss is 9.1, the limit is 3.5")
    logger.log_jump(Jump(step=5, windows=70, from_step=7), windows=70)

    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert [sorted(line) for line in lines] == [
        ["reason", "skipped", "step"],
        ["rewound_from", "step", "windows"],
    ]
    assert [complaints("metrics.jsonl", line) for line in lines] == [[], []]
