"""A run directory of unknown origin: what it says is checked, and nobody looks elsewhere for it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.files import sha256_file
from llmtrain.model.decoder import Decoder
from llmtrain.tokenizer import train_tokenizer
from llmtrain.train.checkpoint.format import Checkpoint, load_checkpoint, load_state, newest_good
from llmtrain.train.checkpoint.integrity import DamagedCheckpointError, verify_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.model_weights import trained_model
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.find import find_checkpoints, find_run
from tests.train.harness import Files, Llmtrain

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


class Trap:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("owned"),)


@pytest.fixture
def run(place: Path, reference: Files) -> RunDirectory:
    """A copy of a finished run, in the working directory."""
    shutil.copytree(reference.path, place / "run")
    return RunDirectory(Path("run"))


@pytest.fixture
def checkpoint(run: RunDirectory) -> Path:
    return list_checkpoints(run.checkpoints)[-1]


def sign(checkpoint: Path) -> None:
    """The manifest agrees with what is there, as a stranger's would."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in checkpoint.iterdir()
        if path.name != "manifest.json"
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"format_version": 1, "files": files}))


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    sign(path.parent)


def move_and_link(path: Path) -> None:
    elsewhere = Path("elsewhere") / path.name
    elsewhere.parent.mkdir(exist_ok=True)
    path.rename(elsewhere)
    path.symlink_to(elsewhere.resolve())


@needs_links
@pytest.mark.parametrize(
    "name",
    ["run.yaml", "metrics.jsonl", "samples.jsonl", "checkpoints", "checkpoints/step-00000020"],
)
def test_a_link_in_a_run_directory_is_refused_by_every_command(
    run: RunDirectory, llmtrain: Llmtrain, name: str
) -> None:
    move_and_link(run.path / name)
    before = sorted(Path("elsewhere").rglob("*"))
    commands = [
        ("train", "-p", "tiny.yaml", "--out", "run", "--resume", "auto"),
        ("train", "-p", "tiny.yaml", "--resume", "run", "--steps", "30"),
        ("train", "-p", "tiny.yaml", "--out", "run"),
        ("eval", "run"),
        ("generate", "run"),
        ("runs", "show", "run"),
    ]
    for command in commands:
        outcome = llmtrain(*command)
        assert outcome.code == 2
        assert f"{run.path / name} is a symbolic link" in outcome.err
    assert sorted(Path("elsewhere").rglob("*")) == before


@needs_links
@pytest.mark.parametrize(
    "name", ["manifest.json", "state.json", "model.safetensors", "config.json"]
)
def test_a_link_in_a_checkpoint_is_refused(run: RunDirectory, checkpoint: Path, name: str) -> None:
    move_and_link(checkpoint / name)
    for read in (verify_checkpoint, load_checkpoint):
        with pytest.raises(UsageError, match="is a symbolic link"):
            read(checkpoint)
    with pytest.raises(UsageError, match="is a symbolic link"):
        newest_good(run.checkpoints, lambda path, why: None)


@needs_links
def test_the_run_directory_itself_may_be_a_link(run: RunDirectory, llmtrain: Llmtrain) -> None:
    run.path.rename("elsewhere")
    run.path.symlink_to(Path("elsewhere").resolve())
    assert llmtrain("eval", "run").code == 0
    outcome = llmtrain("train", "--out", "run", "--resume", "auto", "-p", "tiny.yaml")
    assert outcome.code == 0


@needs_links
def test_a_linked_checkpoint_is_neither_counted_nor_removed(run: RunDirectory) -> None:
    link = run.checkpoints / "step-00000099"
    link.symlink_to(Path("tiny.yaml").resolve().parent)
    assert link not in list_checkpoints(run.checkpoints)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_pipe_in_a_run_directory_is_not_waited_for(
    run: RunDirectory, llmtrain: Llmtrain, name: str
) -> None:
    (run.path / name).unlink()
    os.mkfifo(run.path / name)
    outcome = llmtrain("runs", "show", "run")
    assert outcome.code == 2
    assert "is not an ordinary file" in outcome.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_a_checkpoint_is_damage(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    os.mkfifo(checkpoint / "manifest.json")
    with pytest.raises(DamagedCheckpointError, match="not an ordinary file"):
        verify_checkpoint(checkpoint)


def test_nothing_is_unpickled(run: RunDirectory, checkpoint: Path, llmtrain: Llmtrain) -> None:
    trap = pickle.dumps(Trap())
    pickle.loads(trap)  # noqa: S301
    Path("owned").unlink()  # the trap works
    for name in ("pytorch_model.bin", "optimizer.pt", "rng_state.pth", "training_args.bin"):
        (checkpoint / name).write_bytes(trap)
    sign(checkpoint)
    assert llmtrain("eval", "run").code == 0
    for name in ("model.safetensors", "tokenizer.model", "config.json", "state.json"):
        intact = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(trap)
        sign(checkpoint)
        with pytest.raises(LlmtrainError, match=name):
            load_checkpoint(checkpoint)
        (checkpoint / name).write_bytes(intact)
    (run.path / "run.yaml").write_bytes(trap)
    for command in (("runs", "show", "run"), ("train", "--out", "run", "--resume", "auto")):
        assert llmtrain(*command).code == 2
    assert not Path("owned").exists()


def record_with(change: Callable[[dict[str, Any]], object]) -> None:
    path = Path("run/run.yaml")
    record = yaml.safe_load(path.read_text())
    change(record)
    path.write_text(yaml.dump(record))


RECORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "key escapes": lambda r: r["data"].update(key="../../../etc"),
    "key is absolute": lambda r: r["data"].update(key="/etc"),
    "key is short": lambda r: r["data"].update(key="ab"),
    "key is a number": lambda r: r["data"].update(key=5),
    "data is text": lambda r: r.update(data="here"),
    "profile is text": lambda r: r.update(profile="tiny"),
    "name obeys": lambda r: r["profile"].update(name="a\x1b[2Jb"),
    "origins is a list": lambda r: r.update(origins=["a"]),
    "origin is a number": lambda r: r["origins"].update(name=5),
    "sessions is text": lambda r: r.update(sessions="many"),
    "ranks are text": lambda r: r["sessions"][0].update(ranks="two"),
    "no ranks": lambda r: r["sessions"][0].update(ranks={"processes": 0}),
    "plan is a list": lambda r: r.update(plan=[1]),
    "choice is a number": lambda r: r["plan"].update(threads=5),
    "reason obeys": lambda r: r["plan"]["threads"].update(reason="\x1b]0;title\x07"),
    "reason has a C1": lambda r: r["plan"]["threads"].update(reason="\x9b2J"),
    "value is a list": lambda r: r["plan"]["threads"].update(value=[1]),
    "machine is text": lambda r: r.update(machine="mine"),
    "rate is text": lambda r: r.update(peak_flops="fast"),
    "rate is infinite": lambda r: r.update(peak_flops=float("inf")),
    "result is text": lambda r: r.update(result="done"),
    "result obeys": lambda r: r["result"].update(stopped="\x1b[2J"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_form_is_refused(
    run: RunDirectory, llmtrain: Llmtrain, name: str
) -> None:
    record_with(RECORDS[name])
    with pytest.raises(UsageError, match=r"run\.yaml is not the record of a run: "):
        run.read_record()
    outcome = llmtrain("runs", "show", "run")
    assert outcome.code == 2
    assert "\x1b" not in outcome.err + outcome.out


def test_no_command_uses_a_record_of_another_form(run: RunDirectory, llmtrain: Llmtrain) -> None:
    record_with(RECORDS["key escapes"])
    for command in (("eval", "run"), ("generate", "run"), ("train", "--resume", "run")):
        assert llmtrain(*command).code == 2


@pytest.mark.parametrize("what", ["data", "plan", "machine"])
def test_a_record_that_says_less_is_used_or_refused(
    run: RunDirectory, llmtrain: Llmtrain, what: str
) -> None:
    record_with(lambda record: record.pop(what))
    assert llmtrain("runs", "show", "run").code == 0
    for command in (("eval", "run"), ("train", "--resume", "run", "--steps", "21")):
        outcome = llmtrain(*command)
        assert outcome.code == (2 if what == "data" else 0), outcome.err


PLANS: dict[str, object] = {
    "threads": 10**6,
    "micro_batch": -5,
    "attention": "os.system",
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_nobody_made_is_made_anew(
    run: RunDirectory, llmtrain: Llmtrain, name: str
) -> None:
    record_with(lambda record: record["plan"][name].update(value=PLANS[name]))
    outcome = llmtrain("train", "--resume", "run", "--steps", "21")
    assert outcome.code == 0, outcome.err
    assert RunDirectory(Path("run")).read_record()["plan"][name]["value"] != PLANS[name]


SAY_NOTHING = (
    b'{"step": "first", "loss": 1.0}',
    b'{"step": [1], "loss": 1.0}',
    b'{"step": 99999999999999999999999, "loss": 1.0}',
    b'{"step": true, "loss": 2.0}',
    b'{"step": 3, "loss": 1.0, "loss": 2.0}',
    b'{"loss": "none", "val_loss": [], "step": 4}',
    b'{"step": 4, "val_loss": null}',
    b"[" * 100_000,
    b"[1, 2]",
    b"\xff\xfe",
    b"x" * (3 << 20),
)


def test_lines_that_say_nothing_of_a_step_are_passed_over(
    run: RunDirectory, llmtrain: Llmtrain
) -> None:
    before = json.loads(llmtrain("runs", "show", "run", "--json").out)
    odd = b"\n".join(SAY_NOTHING)
    for path in (run.metrics, run.samples):
        path.write_bytes(odd + b"\n" + path.read_bytes() + odd)
    assert json.loads(llmtrain("runs", "show", "run", "--json").out) == before
    assert llmtrain("train", "--resume", "run", "--steps", "21").code == 0


def test_cutting_metrics_changes_no_line_that_it_keeps(run: RunDirectory) -> None:
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 10]
    odd = b'{"step":   1, "loss": 1e-1, "more": NaN}\n'
    run.metrics.write_bytes(odd + b"".join(lines) + b'{"torn')
    run.cut_after(10)
    assert run.metrics.read_bytes() == odd + b"".join(kept)


CONFIGS: dict[str, object] = {
    "hidden_size": 2**30,
    "num_hidden_layers": 2**30,
    "vocab_size": "400",
    "max_position_embeddings": -1,
    "head_dim": 10**30,
    "num_attention_heads": 0,
    "rope_theta": None,
    "tie_word_embeddings": "no",
    "model_type": ["qwen3"],
}


def model_of(checkpoint: Checkpoint) -> Decoder:
    return trained_model(checkpoint.shape, checkpoint.weights, "the checkpoint")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_not_of_the_weights_takes_no_memory(
    checkpoint: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.train.model_weights.Decoder", None)
    change_json(checkpoint / "config.json", **{name: CONFIGS[name]})
    with pytest.raises(LlmtrainError, match=r"config\.json"):
        model_of(load_checkpoint(checkpoint))


def test_a_context_that_does_not_fit_is_refused(checkpoint: Path, llmtrain: Llmtrain) -> None:
    change_json(checkpoint / "config.json", max_position_embeddings=2**31 - 1)
    outcome = llmtrain("generate", str(checkpoint))
    assert outcome.code == 3
    assert "the limit is" in outcome.err


def test_weights_of_other_names_or_shapes_are_refused(checkpoint: Path) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    other = whole.replace(b"layers.1.mlp.up_proj", b"layers.7.mlp.up_proj")
    assert other != whole
    (checkpoint / "model.safetensors").write_bytes(other)
    sign(checkpoint)
    with pytest.raises(LlmtrainError, match=r"do not match config\.json"):
        model_of(load_checkpoint(checkpoint))


STATES: dict[str, object] = {
    "step": -1,
    "windows": 10**30,
    "tokens": "many",
    "elapsed_s": [],
    "torch_rng": 5,
    "numerics": [],
    "finished": {},
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_another_form_is_damage(checkpoint: Path, name: str) -> None:
    change_json(checkpoint / "state.json", **{name: STATES[name]})
    with pytest.raises(DamagedCheckpointError, match=r"state\.json"):
        load_state(checkpoint)


@pytest.mark.parametrize("text", ["", "not base64", "AAAA", "é"])
def test_a_random_state_that_is_none_is_an_error(
    checkpoint: Path, llmtrain: Llmtrain, text: str
) -> None:
    change_json(checkpoint / "state.json", torch_rng=text)
    outcome = llmtrain("train", "--resume", "run", "--steps", "21")
    assert outcome.code == 1
    assert "random state cannot be restored" in outcome.err


def test_a_profile_of_the_record_names_no_code(run: RunDirectory, llmtrain: Llmtrain) -> None:
    for path, value in (("optim", "os.system"), ("data", "__import__('os')")):
        record_with(lambda r, p=path, v=value: r["profile"][p].update(name=v))  # type: ignore[misc]
        outcome = llmtrain("train", "--resume", "run", "--steps", "30")
        assert outcome.code == 2
        shutil.copy(run.path / "run.yaml", "used.yaml")


def test_another_tokenizer_in_the_checkpoint_is_noticed(
    run: RunDirectory, checkpoint: Path, llmtrain: Llmtrain
) -> None:
    other = train_tokenizer(["quite another text\n" * 50], vocab_size=290).tokenizer
    other.save(checkpoint)
    sign(checkpoint)
    for command in (("eval", "run"), ("train", "--resume", "run", "--steps", "21")):
        outcome = llmtrain(*command)
        assert outcome.code == 5
        assert "were made with another tokenizer" in outcome.err


def test_found_runs_link_nowhere(run: RunDirectory) -> None:
    assert find_run("run").path == run.path
    assert [path.name for path in find_checkpoints("run")] == ["step-00000010", "step-00000020"]
