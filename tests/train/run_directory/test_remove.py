"""Removing a run removes what training wrote, and nothing else."""

from __future__ import annotations

from pathlib import Path

from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.remove import remove_run, run_bytes

SAVES = ["step-00000004", "step-00000002.damaged", ".step-00000006.0123abcd"]
RECORD = {"format": 1, "profile": {"name": "tiny"}}


def test_what_is_beside_checkpoints_stays_and_is_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for name in SAVES:
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / "model.safetensors").write_bytes(b"1234")
    (run.checkpoints / "keep.txt").write_text("mine")
    (run.path / "notes.txt").write_text("mine")
    run.write_record(RECORD)
    expected = 4 * len(SAVES) + (run.path / "run.yaml").stat().st_size
    assert run_bytes(run) == expected
    removed = remove_run(run)
    assert removed.freed_bytes == expected
    assert removed.left == ("checkpoints", "notes.txt")
    assert sorted(p.name for p in run.path.rglob("*") if p.is_file()) == ["keep.txt", "notes.txt"]


def test_a_run_with_nothing_else_is_gone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    (run.checkpoints / SAVES[0]).mkdir(parents=True)
    run.write_record(RECORD)
    assert remove_run(run).left == ()
    assert not run.path.exists()
