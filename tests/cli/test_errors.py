"""Whatever goes wrong is one line, a hint, an exit code, and with --json one document."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from llmtrain.__main__ import main
from tests.cli.conftest import Command

TRAIN = ("train", "-p", "tiny.yaml")


def nothing(place: Path) -> None:
    """The directory stays as it is."""


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def prepare(place: Path) -> None:
        (place / name).write_bytes(content)

    return prepare


def a_run(place: Path) -> None:
    (place / "runs" / "first").mkdir(parents=True)
    (place / "runs" / "first" / "run.yaml").write_text("profile: {name: tiny}\n")


def a_damaged_record(place: Path) -> None:
    (place / "runs" / "first").mkdir(parents=True)
    (place / "runs" / "first" / "run.yaml").write_text("[")


def trained_tokenizer(checkpoint: Path) -> Path:
    return next(checkpoint.glob("tokenizer.*"))


Case = tuple[tuple[str, ...], Callable[[Path], None], int, tuple[str, ...]]
CASES: dict[str, Case] = {
    "unknown profile": (
        ("train", "-p", "cpu-smal"),
        nothing,
        2,
        ("cpu-smal", "did you mean cpu-small?"),
    ),
    "missing profile file": (("train", "-p", "no/such.yaml"), nothing, 2, ("no/such.yaml",)),
    "profile that is no YAML": (
        ("train", "-p", "bad.yaml"),
        write("bad.yaml", b"model: {\n"),
        2,
        ("bad.yaml",),
    ),
    "unknown key": (
        (*TRAIN, "--set", "model.num_layer=3"),
        nothing,
        2,
        ("model.num_layer", "did you mean model.num_layers?"),
    ),
    "unknown key in a profile": (
        ("train", "-p", "bad.yaml"),
        write("bad.yaml", b"train:\n  stepz: 3\n"),
        2,
        ("train.stepz", "bad.yaml:2", "train.steps"),
    ),
    "wrong type": (
        (*TRAIN, "--set", "model.num_layers=many"),
        nothing,
        2,
        ("model.num_layers", "many"),
    ),
    "number out of range": ((*TRAIN, "--steps", "0"), nothing, 2, ("train.steps", "--steps")),
    "no number": ((*TRAIN, "--steps", "x"), nothing, 2, ("--steps", "llmtrain train --help")),
    "time without a unit": ((*TRAIN, "--time", "30"), nothing, 2, ("30",)),
    "two horizons": (
        (*TRAIN, "--steps", "5", "--tokens", "5k"),
        nothing,
        2,
        ("--steps", "--tokens"),
    ),
    "impossible shape": (
        (*TRAIN, "--set", "model.hidden_size=33"),
        nothing,
        2,
        ("hidden_size 33", "num_heads 2"),
    ),
    "step that is no whole number of windows": (
        (*TRAIN, "--set", "train.tokens_per_step=300"),
        nothing,
        2,
        ("300", "32", "train.tokens_per_step="),
    ),
    "missing data": (
        (*TRAIN, "--data", "korpus.txt"),
        nothing,
        5,
        ("korpus.txt", "did you mean corpus.txt?"),
    ),
    "empty corpus": ((*TRAIN, "--data", "empty.txt"), write("empty.txt", b""), 5, ("empty.txt",)),
    "no UTF-8": (
        (*TRAIN, "--data", "latin1.txt"),
        write("latin1.txt", b"caf\xe9 " * 100),
        5,
        ("latin1.txt", "0xe9", "offset 3"),
    ),
    "no such field": (
        (*TRAIN, "--data", "d.jsonl"),
        write("d.jsonl", b'{"text": "a"}\n{"body": "b"}\n'),
        5,
        ("d.jsonl:2", "'text'", "'body'"),
    ),
    "tokenizer that is none": ((*TRAIN, "--tokenizer", "nowhere"), nothing, 5, ("nowhere",)),
    "too large": (
        (*TRAIN, "--set", "model.num_layers=10000000"),
        nothing,
        3,
        ("GiB", "the limit is", "--set=model.num_layers="),
    ),
    "too large to predict": (
        ("memory", "-p", "tiny.yaml", "--set", "model.num_layers=10000000"),
        nothing,
        3,
        ("GiB", "the limit is"),
    ),
    "file in the place of the run": (
        (*TRAIN, "--out", "corpus.txt"),
        nothing,
        2,
        ("corpus.txt", "cannot be written"),
    ),
    "unknown run": (("eval", "frist"), a_run, 2, ("frist", "did you mean first?")),
    "unknown run to generate with": (("generate", "frist"), a_run, 2, ("frist",)),
    "unknown run to show": (("runs", "show", "frist"), a_run, 2, ("did you mean first?",)),
    "unknown run to resume": ((*TRAIN, "--resume", "frist"), a_run, 2, ("did you mean first?",)),
    "run without a checkpoint": (("eval", "first"), a_run, 2, ("no checkpoint", "--resume auto")),
    "unknown option": (
        ("runs", "show", "--colour"),
        nothing,
        2,
        ("--colour", "llmtrain runs show --help"),
    ),
    "unknown option before a command": (("--colour",), nothing, 2, ("--colour", "llmtrain --help")),
    "unknown command": (("trian",), nothing, 2, ("trian", "llmtrain --help")),
    "missing option": (
        ("tokenizer", "train", "--out", "t"),
        nothing,
        2,
        ("--vocab-size", "llmtrain tokenizer train --help"),
    ),
    "missing argument": (("eval",), nothing, 2, ("RUN", "llmtrain eval --help")),
    "unknown device": ((*TRAIN, "--device", "tpu"), nothing, 2, ("tpu",)),
}


@pytest.mark.parametrize(("arguments", "prepare", "code", "words"), CASES.values(), ids=CASES)
def test_failure_is_told_in_one_line_with_a_hint(
    arguments: tuple[str, ...],
    prepare: Callable[[Path], None],
    code: int,
    words: tuple[str, ...],
    llmtrain: Command,
    place: Path,
) -> None:
    prepare(place)

    outcome = llmtrain(*arguments)

    assert outcome.code == code
    assert outcome.out == ""
    told = outcome.err.splitlines()
    at = next(i for i, line in enumerate(told) if line.startswith("error: "))
    assert all(line.startswith("hint: ") for line in told[at + 1 :])
    assert all(word in outcome.err for word in words), outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.err.count("error:") == 1


@pytest.mark.parametrize(
    ("arguments", "prepare", "code", "words"),
    [case for case in CASES.values() if case[0][0] not in ("generate", "trian", "--colour")],
    ids=[
        name for name, case in CASES.items() if case[0][0] not in ("generate", "trian", "--colour")
    ],
)
def test_failure_is_one_document_with_json(
    arguments: tuple[str, ...],
    prepare: Callable[[Path], None],
    code: int,
    words: tuple[str, ...],
    llmtrain: Command,
    place: Path,
) -> None:
    prepare(place)

    outcome = llmtrain(*arguments, "--json")

    assert outcome.code == code
    error = outcome.document["error"]
    assert set(error) - {"ways_out"} == {"code", "message", "hint"}
    assert ("ways_out" in error) <= (code == 3)
    assert error["code"] == code
    assert all(word in error["message"] + error["hint"] for word in words)


def test_tokenizer_with_more_pieces_than_the_model(llmtrain: Command, trained: Path) -> None:
    checkpoint = next((trained / "checkpoints").glob("step-*"))

    outcome = llmtrain(*TRAIN, "--tokenizer", checkpoint, "--set", "model.vocab_size=350")

    assert outcome.code == 5
    assert "400 pieces" in outcome.err
    assert "hint: --set model.vocab_size=400" in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_device_that_is_not_there(llmtrain: Command) -> None:
    outcome = llmtrain(*TRAIN, "--device", "cuda")

    assert outcome.code == 2
    assert "cuda" in outcome.err
    assert "hint: llmtrain device info" in outcome.err


def test_damaged_checkpoint_with_nothing_to_fall_back_to(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    shutil.copytree(trained, place / "run")
    for checkpoint in (place / "run" / "checkpoints").iterdir():
        (checkpoint / "model.safetensors").write_bytes(b"\0" * 100)

    for command in ("eval", "generate"):
        outcome = llmtrain(command, "run")
        assert outcome.code == 1
        assert "model.safetensors" in outcome.err
        assert "Traceback" not in outcome.err


def test_damaged_newest_checkpoint_is_passed_over(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    shutil.copytree(trained, place / "run")
    older, newer = sorted((place / "run" / "checkpoints").iterdir())
    (newer / "model.safetensors").unlink()

    outcome = llmtrain("eval", "run", "--data", "corpus.txt", "--json")

    assert outcome.code == 0
    assert outcome.document["checkpoint"] == str(Path("run") / "checkpoints" / older.name)
    assert "warning: damaged checkpoint" in outcome.err


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_debug_shows_where_and_changes_nothing_else(
    as_json: tuple[str, ...], llmtrain: Command
) -> None:
    outcome = llmtrain("train", "-p", "cpu-smal", "--debug", *as_json)

    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert "UsageError" in outcome.err
    assert outcome.err.splitlines()[-2].startswith("error: unknown profile")
    assert bool(outcome.out) == bool(as_json)
    if as_json:
        assert outcome.document["error"]["code"] == 2


UNFORESEEN = """
import sys
from llmtrain.cli import app, runs
import llmtrain.train.run_directory.find as find
def fail(path): raise ZeroDivisionError("nobody foresaw this")
find.all_runs = fail
sys.argv = ["llmtrain", "runs", "list", "--json", *sys.argv[1:]]
app.main()
"""


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_what_nobody_foresaw_is_told_in_one_line_too(debug: tuple[str, ...], place: Path) -> None:
    import sys

    done = subprocess.run(
        [sys.executable, "-c", UNFORESEEN, *debug],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == 1
    assert "error: ZeroDivisionError: nobody foresaw this" in done.stderr
    assert ("Traceback" in done.stderr) == bool(debug)


def test_record_that_cannot_be_read_does_not_hide_the_other_runs(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    shutil.copytree(trained, place / "runs" / "good")
    (place / "runs" / "bad").mkdir()
    (place / "runs" / "bad" / "run.yaml").write_text("[")

    # Without a checkpoint it is no run.
    assert llmtrain(*TRAIN, "--resume", "auto").code == 0
    (place / "runs" / "bad" / "checkpoints" / "step-00000004").mkdir(parents=True)
    outcome = llmtrain("runs", "list", "--json")

    assert outcome.code == 0
    assert [run["run"] for run in outcome.document["runs"]] == [str(Path("runs") / "good")]
    assert "warning:" in outcome.err
    assert "bad" in outcome.err
    resumed = llmtrain(*TRAIN, "--resume", "auto")  # which of the two is meant is unknown
    assert resumed.code == 2
    assert "--resume RUN" in resumed.err


@pytest.mark.parametrize(
    ("arguments", "is_json"),
    [
        (("eval", "nosuchrun", "--json"), True),
        (("eval", "--json", "--bogus"), True),
        (("eval", "--bogus", "--json"), True),
        (("eval", "nosuchrun", "--json", "--max-bpb"), True),
        (("generate", "nosuchrun", "--json", "--prompt", "a"), True),
        (("generate", "nosuchrun", "--prompt", "--json"), False),
        (("generate", "nosuchrun", "--prompt=--json"), False),
        (("tokenizer", "encode", "--tokenizer", "nowhere", "--", "--json"), False),
        (("eval", "nosuchrun"), False),
        (("bogus", "--json"), False),
    ],
)
def test_json_is_printed_where_json_is_an_option(
    arguments: tuple[str, ...], is_json: bool, llmtrain: Command
) -> None:
    outcome = llmtrain(*arguments)
    assert outcome.code != 0
    assert bool(outcome.out) is is_json
    if is_json:
        assert outcome.document["error"]["code"] == outcome.code


def test_a_traceback_is_printed_where_debug_is_an_option(llmtrain: Command) -> None:
    assert "Traceback" in llmtrain("eval", "nosuchrun", "--debug").err
    assert "Traceback" not in llmtrain("generate", "nosuchrun", "--prompt", "--debug").err


@pytest.mark.parametrize(
    ("arguments", "prepare"),
    [
        (("train", "-p", "bad.yaml"), write("bad.yaml", b"train: {steps: x}\n")),
        (("train", "-p", "bad.yaml"), write("bad.yaml", b"model: {\n")),
        (("runs", "show", "first"), a_damaged_record),
        ((*TRAIN, "--data", "empty.txt"), write("empty.txt", b"")),
    ],
)
def test_what_is_wrong_in_a_file_has_no_hint_for_the_command_line(
    arguments: tuple[str, ...], prepare: Callable[[Path], None], llmtrain: Command, place: Path
) -> None:
    prepare(place)
    outcome = llmtrain(*arguments)
    assert outcome.code in (1, 2, 5)
    assert "--help" not in outcome.err
    document = llmtrain(*arguments, "--json").document
    assert "--help" not in document["error"]["hint"]


@pytest.mark.parametrize("place_of_cache", ["corpus.txt/cache", "/proc/cache"])
def test_a_cache_that_cannot_be_written_is_named_with_its_variable(
    llmtrain: Command, monkeypatch: pytest.MonkeyPatch, place_of_cache: str, place: Path
) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / place_of_cache))
    outcome = llmtrain(*TRAIN)
    assert outcome.code == 1
    assert str(place / place_of_cache) in outcome.err
    assert "LLMTRAIN_CACHE_DIR" in outcome.err
    assert not (place / "runs").exists() or not list((place / "runs").iterdir())


def test_a_tokenizer_is_never_written_into_a_checkpoint(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    checkpoint = shutil.copytree(next((trained / "checkpoints").glob("step-*")), place / "model")
    before = {path: path.read_bytes() for path in checkpoint.iterdir()}
    words = ("tokenizer", "train", "--vocab-size", "400", "--data", "corpus.txt", "--overwrite")
    for out in ("model", "model/tokenizer"):
        outcome = llmtrain(*words, "--out", out)
        assert outcome.code == 2
        assert "nothing is written into a checkpoint" in outcome.err
    imported = llmtrain("tokenizer", "import", trained_tokenizer(checkpoint), "--out", "model")
    assert imported.code == 2
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("train", "--nproc", "0"), "'--nproc': has to be at least 1, not 0"),
        (("train", "--seed", "1.5"), "'--seed': has to be a whole number, not 1.5"),
        (("train", "--epochs", "x"), "'--epochs': has to be a number, not x"),
        (("generate", "r", "--top-p", "2"), "'--top-p': has to be a number above 0 and at most 1"),
        (("chat", "r", "--top-p", "-0"), "above 0 and at most 1, not -0"),
        (("generate", "r", "--temperature", "nan"), "has to be a number at least 0, not nan"),
        (("chat", "r", "--temperature", "inf"), "has to be a number at least 0, not inf"),
        (("chat", "r", "--repetition-penalty", "0"), "at least 1 and at most 100, not 0"),
        (("generate", "r", "--repetition-penalty", "1e308"), "at least 1 and at most 100, not 1e3"),
        (("generate", "r", "--repetition-penalty", "x"), "at least 1 and at most 100, not x"),
        (("serve", "r", "--port", "65536"), "'--port': has to be at least 0 and at most 65535"),
        (("runs", "report", "r", "--port", "99999"), "at least 0 and at most 65535, not 99999"),
        (("train", "--device", "tpu"), "'--device': 'tpu' is not one of 'auto', 'cpu'"),
    ],
)
def test_an_option_is_refused_in_plain_english(
    llmtrain: Command, arguments: tuple[str, ...], what: str
) -> None:
    outcome = llmtrain(*arguments)
    assert outcome.code == 2
    assert what in outcome.err


@pytest.mark.skipif(sys.platform == "win32", reason="the cache of Windows is not under HOME")
def test_a_home_that_cannot_be_written_names_the_variable_of_the_cache(
    llmtrain: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "home").write_text("no directory")
    monkeypatch.delenv("LLMTRAIN_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(place / "home"))

    outcome = llmtrain("train", "-p", "tiny.yaml", "--out", "run")

    assert outcome.code == 1
    assert str(place / "home") in outcome.err
    assert "LLMTRAIN_CACHE_DIR" in outcome.err
    assert not (place / "run").exists()


def test_a_working_directory_that_cannot_be_written_names_out(
    llmtrain: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)

    outcome = llmtrain("train", "-p", "tiny.yaml")

    assert outcome.code == 2
    assert "cannot be written: Read-only file system" in outcome.err
    assert "hint: --out DIRECTORY" in outcome.err
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    "command", ["profiles list", "--version", "--help", "train --help", "runs", "--show-completion"]
)
def test_a_full_disk_behind_stdout_is_named(command: str, place: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is a device of Linux")
    # through a shell, which completion asks the parents of the process for
    line = shlex.join([sys.executable, "-m", "llmtrain", *command.split()])
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            ["bash", "-c", f"{line}; exit $?"],
            cwd=place,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: stdout: No space left on device")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Unix")
@pytest.mark.parametrize("command", ["profiles list", "--version", "--help", "runs --help"])
def test_a_reader_that_went_away_is_no_failure(command: str, place: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as unread:
        done = subprocess.run(
            [sys.executable, "-m", "llmtrain", *command.split()],
            cwd=place,
            stdout=unread,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_value_is_repeated_once_in_an_error(llmtrain: Command) -> None:
    outcome = llmtrain("train", "-p", "tiny.yaml", "--dry-run", "--tokens", "nan")
    assert outcome.code == 2
    assert outcome.err.count("'nan'") == 1


@pytest.mark.parametrize("command", ["memory", "runs list", "eval"])
def test_an_argument_is_named_without_the_brackets_of_its_usage(
    command: str, llmtrain: Command
) -> None:
    outcome = llmtrain(*command.split(), "")
    assert outcome.code == 2
    assert re.search(r"error: \w+ is empty", outcome.err)


def test_a_file_that_is_no_profile_is_not_called_an_unknown_one(
    llmtrain: Command, place: Path
) -> None:
    (place / "text.txt").write_text("words")
    outcome = llmtrain("train", "--dry-run", "-p", "text.txt")
    assert outcome.code == 2
    assert "text.txt is not a profile file" in outcome.err


def test_a_plan_warns_of_text_that_training_would_refuse(llmtrain: Command) -> None:
    flags = ("train", "-p", "tiny.yaml", "--dry-run", "--data", "missing.txt")
    assert "warning: missing.txt does not exist" in llmtrain(*flags).err
    assert "missing.txt" not in llmtrain(*flags, "--assume", "cpu:8c:32GiB").err


def test_columns_of_profiles_are_apart(llmtrain: Command) -> None:
    heading, *rows = llmtrain("profiles", "list").out.splitlines()
    assert re.split(r" {2,}", heading) == [
        *("profile", "parameters", "context", "vocabulary", "tokens per step")
    ]
    assert {len(row) for row in rows} == {len(heading)}


def test_nothing_is_written_into_a_checkpoint(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    run = shutil.copytree(trained, place / "kept")
    checkpoint = next((run / "checkpoints").glob("step-*"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    tokenizer = str(checkpoint / "tokenizer.model")
    commands = (
        ("train", "-p", "tiny.yaml"),
        ("export", str(run), "--format", "gguf", "--no-verify"),
        ("tokenizer", "encode", "--tokenizer", tokenizer, "corpus.txt"),
        ("tokenizer", "import", tokenizer, "--overwrite"),
        ("profiles", "convert", "tiny.yaml"),
    )
    places = (run / "checkpoints" / "new", checkpoint / "config.json")
    for command, out in itertools.product(commands, places):
        outcome = llmtrain(*command, "--out", str(out))
        assert outcome.code == 2
        assert "nothing is written into a checkpoint" in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_ids_do_not_replace_the_text_that_they_are_of(
    llmtrain: Command, trained: Path, place: Path
) -> None:
    tokenizer = str(next((trained / "checkpoints").glob("step-*/tokenizer.model")))
    before = (place / "corpus.txt").read_bytes()
    words = ("tokenizer", "encode", "--tokenizer", tokenizer, "corpus.txt", "--out", "./corpus.txt")
    outcome = llmtrain(*words)
    assert outcome.code == 2
    assert "is the text that is read" in outcome.err
    assert (place / "corpus.txt").read_bytes() == before


def test_ctrl_c_while_modules_are_imported_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "llmtrain.cli.app", Interrupted("app"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""
