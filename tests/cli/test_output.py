"""What is said is what a terminal shows, whoever chose the words."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from llmtrain.cli.output import Output
from llmtrain.cli.tables import columns_table
from llmtrain.documents.profiles import ProfilesShow
from tests.cli.conftest import Command

OBEYED = "a\x1b[2Jb\x07\x9b31m\x7f\r\ud800\tc"
SHOWN = r"a\u001b[2Jb\u0007\u009b31m\u007f\u000d\ud800" + "\tc"


def test_no_terminal_obeys_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(verbose=True)
    output.result(OBEYED)
    assert capsys.readouterr().out == SHOWN + "\n"
    for say in (output.note, output.detail, output.warning, lambda text: output.error(text, text)):
        say(OBEYED.replace("\r", ""))
        err = capsys.readouterr().err
        assert SHOWN.replace(r"\u000d", "").partition("\t")[0] in err
        assert not set("\x1b\x07\x9b\x7f\ud800") & set(err)


def test_a_document_is_json_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    described = {"value": OBEYED, "origin": OBEYED}
    Output().document(ProfilesShow.of(profile={OBEYED: described}, origins={OBEYED: "é\n"}))
    out = capsys.readouterr().out
    document = json.loads(out)
    assert document["profile"] == {OBEYED: described}
    assert document["origins"] == {OBEYED: "é\n"}
    assert not set("\x1b\x9b\ud800") & set(out)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_key_of_a_profile_is_not_obeyed(
    llmtrain: Command, place: Path, as_json: tuple[str, ...]
) -> None:
    (place / "bad.yaml").write_text('"\\e]0;owned\\a": 5\n')
    outcome = llmtrain("train", "-p", "bad.yaml", *as_json)
    assert outcome.code == 2
    assert "\x1b" not in outcome.out + outcome.err
    assert r"\u001b]0;owned\u0007" in outcome.err


@pytest.mark.parametrize("as_json", [(), ("--json",)])
@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_not_unicode_is_told(
    llmtrain: Command, place: Path, as_json: tuple[str, ...]
) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    try:
        (place / name).write_bytes(b"\xff")
    except OSError:
        pytest.skip("names are Unicode here")
    outcome = llmtrain("train", "-p", "tiny.yaml", "--data", place, *as_json)
    assert outcome.code == 5
    assert r"caf\xe9.txt is not UTF-8" in outcome.err
    if as_json:
        assert outcome.out.isascii()
        assert r"caf\xe9.txt" in json.loads(outcome.out)["error"]["message"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_json_has_a_name_that_is_not_unicode_as_text_that_names_it(
    llmtrain: Command, place: Path
) -> None:
    """No lone surrogate, which strict parsers refuse; the same text finds the file."""
    directory = place / "notes"
    directory.mkdir()
    try:
        (directory / os.fsdecode(b"caf\xe9.txt")).write_text("a few words\n" * 50)
    except OSError:
        pytest.skip("names are Unicode here")
    outcome = llmtrain("data", "inspect", "--data", directory, "--json")
    assert r"\ud" not in outcome.out
    origin = outcome.document["samples"][0]["origin"]
    assert origin.endswith(r"caf\xe9.txt")
    again = llmtrain("data", "inspect", "--data", origin, "--json")
    assert again.document["documents"] == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_gets_long_lines_broken_and_between_words(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "40")
    text = "measuring the block " * 6

    Output().note(text)

    lines = stream.getvalue().splitlines()
    assert len(lines) == (3 if is_terminal else 1)
    assert " ".join(lines).split() == text.split()


def test_a_command_is_not_broken_by_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    line = "generate: llmtrain generate run --prompt 'one two three'"
    Output().note(line, in_one_piece=True)
    Output().note(line)
    whole, *broken = capsys.readouterr().err.splitlines()
    assert whole == line
    assert len(broken) > 1


@pytest.mark.parametrize("columns", [60, 100])
def test_a_table_is_broken_between_words_and_is_as_narrow_as_its_terminal(columns: int) -> None:
    table = columns_table(
        ("name", "number", "words"), [("a", "1,000", "some words " * 12)], numbers=("number",)
    )
    console = Console(width=columns, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    assert all(len(line) <= columns for line in lines)
    assert set(" ".join(lines).split()) == {"name", "number", "words", "a", "1,000", "some"}
