from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from tests.cli.conftest import Command


def test_a_gguf_file_is_written_and_read_by_llama_cpp(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    document = llmtrain(
        "export", trained, "--format", "gguf", "--quant", "q8_0", "--ollama", "--out", "o", "--json"
    ).document

    file, modelfile = document["files"]
    assert file["name"].endswith("-v1.0-Q8_0.gguf")
    assert modelfile["name"] == "Modelfile"
    text = (place / "o" / "Modelfile").read_text()
    assert text.startswith(f'FROM ./{file["name"]}\nTEMPLATE "{{{{ .Prompt }}}}"\n')
    assert document["verification"]["program"] == "llama.cpp"
    assert document["verification"]["texts"] == 222
    cost = document["cost"]
    assert cost["text"] == "the run's validation text"
    assert cost["bits_per_byte_after"] == pytest.approx(cost["bits_per_byte_before"], rel=0.01)
    assert cost["bytes_after"] < cost["bytes_before"]
    assert sorted(path.name for path in (place / "o").iterdir()) == ["Modelfile", file["name"]]


def test_a_directory_is_written_and_read_by_transformers(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    document = llmtrain("export", trained, "--format", "hf", "--quant", "bf16", "--json").document

    directory = place / document["directory"]
    assert directory.parent.name == "exports"
    assert document["verification"]["program"] == "transformers"
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    names = {path.name for path in directory.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not names & {"optimizer.safetensors", "state.json", "manifest.json"}
    card = (directory / "README.md").read_text()
    for words in ("`corpus.txt`", "placeholder", "gzip", "## Samples", "the run recorded"):
        assert words in card
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert str(model.dtype) == "torch.bfloat16"


def test_nothing_is_replaced_without_being_asked(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    def export(*arguments: object) -> tuple[int, str]:
        outcome = llmtrain("export", trained, "--format", "hf", "--no-verify", *arguments)
        return outcome.code, outcome.err

    assert export("--out", "o")[0] == 0
    assert export("--out", "o")[0] == 2
    assert export("--out", "o", "--overwrite", "--license", "mit")[0] == 0
    assert 'license: "mit"' in (place / "o" / "README.md").read_text()
    (place / "o" / "notes.txt").write_text("mine")
    code, err = export("--out", "o", "--overwrite")
    assert (code, "notes.txt" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "hf", "--quant", "q8_0"), "--quant q8_0"),
        (("--format", "hf", "--ollama"), "--ollama"),
        (("--format", "hf", "--push", "name"), "--push name"),
        (("--format", "hf", "--push", "owner/name"), "token"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    arguments: tuple[str, ...],
    words: str,
    llmtrain: Command,
    trained: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)

    outcome = llmtrain("export", trained, *arguments, "--out", "o")

    assert outcome.code == 2
    assert words in outcome.err
    assert not (place / "o").exists()


def test_a_checkpoint_out_of_its_run_is_compared_on_text_that_is_named(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    shutil.copytree(trained / "checkpoints" / "step-00000020", place / "model")

    document = llmtrain(
        *("export", "model", "--format", "hf", "--no-verify"),
        *("--quant", "f16", "--data", "corpus.txt", "--json"),
    ).document

    assert document["verification"] is None
    assert document["cost"]["text"] == "corpus.txt"
    assert "not recorded" in Path(document["directory"], "README.md").read_text()


_KILLED = """
import os, signal, sys
from llmtrain.engine import export_run
from llmtrain.export.verify import verify
export_run.verify = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
from llmtrain.cli.app import run
run(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_killed_half_way_nothing_has_the_final_name(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    command = ["export", str(trained), "--format", "gguf", "--out", "o"]
    code = subprocess.run([sys.executable, "-c", _KILLED, *command], check=False).returncode

    assert code < 0
    [left] = (place / "o").iterdir()
    assert left.name.startswith(".")
    assert llmtrain(*command).code == 0
    assert [path.suffix for path in (place / "o").iterdir()] == [".gguf"]
