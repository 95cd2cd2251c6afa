"""A checkpoint is whole or it is not there, and no damage to it goes unnoticed."""

import dataclasses
import errno
import json
import os
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.files import sha256_file
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection, OptimSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.train.checkpoint import integrity
from llmtrain.train.checkpoint import writing as writing_module
from llmtrain.train.checkpoint.format import Checkpoint, SavedState, load_checkpoint, newest_good
from llmtrain.train.checkpoint.integrity import DamagedCheckpointError, verify_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints, set_aside
from llmtrain.train.checkpoint.parts import MANIFEST, OPTIMIZER
from llmtrain.train.checkpoint.writing import remove_old, save_checkpoint
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.train.parameter_groups import build_optimizer, named_state

SHAPE = shape_of(
    ModelSection(
        vocab_size=300, hidden_size=8, intermediate_size=12, num_layers=1, num_heads=2, context=8
    )
)
FILES = {
    "config.json",
    "generation_config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["def f(x):\n    return x\n" * 20], vocab_size=300).tokenizer


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Tokenizer) -> Checkpoint:
    """Of a model that has taken a step."""
    model = Decoder(SHAPE)
    model.initialise(0)
    optimizer = build_optimizer(model, OptimSection(), tokens_per_step=8192)
    tokens = torch.arange(8)[None]
    model(tokens, tokens).backward()
    optimizer.step()
    state = SavedState(
        step=1,
        tokens=8,
        windows=1,
        elapsed_s=0.1 + 0.2,
        horizon_steps=None,
        val_loss=1 / 3,
        best_step=1,
        torch_rng="c2VlZA==",
        course=DivergenceState(),
        numerics={"threads": 2, "precision": "fp32"},
    )
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    return Checkpoint(state, weights, named_state(model, optimizer), SHAPE, tokenizer)


def at_step(checkpoint: Checkpoint, step: int) -> Checkpoint:
    return dataclasses.replace(checkpoint, state=checkpoint.state.model_copy(update={"step": step}))


@pytest.fixture
def saved(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, checkpoint)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def test_what_was_saved_is_loaded_bitwise(checkpoint: Checkpoint, saved: Path) -> None:
    found = load_checkpoint(saved)
    assert found.state == checkpoint.state
    assert found.shape == checkpoint.shape
    assert found.tokenizer.fingerprint == checkpoint.tokenizer.fingerprint
    for loaded, original in (
        (found.weights, checkpoint.weights),
        (found.optimizer, checkpoint.optimizer),
    ):
        assert loaded.keys() == original.keys()
        assert all(identical(loaded[name], original[name]) for name in original)


def test_the_optimizer_is_read_only_where_it_is_wanted(saved: Path) -> None:
    assert load_checkpoint(saved, with_optimizer=False).optimizer == {}


def test_saving_twice_gives_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = contents(save_checkpoint(tmp_path / "a", checkpoint))
    assert first == contents(save_checkpoint(tmp_path / "b", checkpoint))


def test_the_manifest_lists_every_file(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == FILES
    listed = json.loads((saved / MANIFEST).read_text("utf-8"))["files"]
    assert set(listed) == FILES - {MANIFEST}
    for name, entry in listed.items():
        assert entry["bytes"] == (saved / name).stat().st_size
        assert entry["sha256"] == sha256_file(saved / name)


def test_there_is_no_pickle(saved: Path) -> None:
    for path in saved.iterdir():
        data = path.read_bytes()
        assert not zipfile.is_zipfile(path)
        assert not data.startswith(b"\x80")  # the opcode that a pickle begins with
        if path.suffix == ".json":
            json.loads(data)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_who_may_read_other_files_may_read_a_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    path = save_checkpoint(tmp_path, checkpoint)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def require_damaged(path: Path, name: str) -> None:
    for check in (verify_checkpoint, load_checkpoint):
        with pytest.raises(DamagedCheckpointError, match=re.escape(name)) as caught:
            check(path)
        assert caught.value.exit_code == 1


def positions(size: int) -> list[int]:
    """Both ends, and seven places between them."""
    return sorted({size * i // 8 for i in range(8)} | {size - 1})


@pytest.mark.parametrize("name", sorted(FILES - {MANIFEST}))
def test_one_flipped_bit_is_noticed(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for number, position in enumerate(positions(len(whole))):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << number % 8
        (saved / name).write_bytes(flipped)
        require_damaged(saved, name)
    (saved / name).write_bytes(whole)
    verify_checkpoint(saved)


def test_a_flipped_bit_in_the_manifest_hides_nothing(saved: Path) -> None:
    """It is noticed, or it changes nothing that a file is compared with."""
    whole = (saved / MANIFEST).read_bytes()
    entries = json.loads(whole)["files"]
    noticed = 0
    for position in range(0, len(whole), 5):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        (saved / MANIFEST).write_bytes(flipped)
        try:
            verify_checkpoint(saved)
        except DamagedCheckpointError:
            noticed += 1
        else:
            assert json.loads(flipped)["files"] == entries
    assert noticed > len(whole) / 5 * 0.9


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("left", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_noticed(saved: Path, name: str, left: float) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: int(len(whole) * left)])
    require_damaged(saved, name)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_noticed(saved: Path, name: str) -> None:
    (saved / name).unlink()
    if name == OPTIMIZER:
        assert not load_checkpoint(saved).has_optimizer
        with pytest.raises(DamagedCheckpointError, match=name):
            verify_checkpoint(saved)
    else:
        require_damaged(saved, name)
    (saved / name).mkdir()
    require_damaged(saved, name)


def test_a_longer_file_is_noticed(saved: Path) -> None:
    with (saved / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    require_damaged(saved, "model.safetensors")


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    (path / MANIFEST).write_text(json.dumps(change(manifest)), "utf-8")


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/hostname", "..", ".", "", "sub/file", "nul\0", "x" * 300, "\ud800"],
    ids=repr,
)
def test_a_manifest_names_only_files_beside_it(saved: Path, name: str) -> None:
    (saved.parent / "secret").write_text("secret")
    entry = {"bytes": 6, "sha256": sha256_file(saved.parent / "secret")}
    rewrite_manifest(saved, lambda m: m | {"files": m["files"] | {name: entry}})
    require_damaged(saved, str(saved))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "null",
        "[]",
        "3",
        "{}",
        '{"files": null}',
        '{"files": []}',
        '{"files": {}}',
        '{"files": {"model.safetensors": 3}}',
        '{"files": {"model.safetensors": null}}',
        '{"files": {"model.safetensors": "bytes sha256"}}',
        '{"files": {"model.safetensors": {"bytes": 3}}}',
        "\ufeff{}",
    ],
)
def test_a_manifest_that_is_none_is_damage(saved: Path, text: str) -> None:
    (saved / MANIFEST).write_text(text, "utf-8")
    require_damaged(saved, MANIFEST)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\x00" * 100, b"[" * 100_000])
def test_a_manifest_that_is_no_text_is_damage(saved: Path, data: bytes) -> None:
    (saved / MANIFEST).write_bytes(data)
    require_damaged(saved, MANIFEST)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model"])
def test_a_manifest_that_leaves_out_a_file_is_damage(saved: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> dict[str, Any]:
        del manifest["files"][name]
        return manifest

    rewrite_manifest(saved, change)
    require_damaged(saved, MANIFEST)


def test_a_disk_that_does_not_read_is_no_damage(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> str:
        if path.name == "model.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return sha256_file(path)

    monkeypatch.setattr(integrity, "sha256_file", failing)
    with pytest.raises(LlmtrainError, match=r"model\.safetensors.*error") as failure:
        verify_checkpoint(saved)
    assert not isinstance(failure.value, DamagedCheckpointError)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config.json", b"{"),
        ("state.json", b'{"format_version": 1}'),
        ("state.json", b'{"format_version": 1, "step": NaN}'),
        ("model.safetensors", b"\0" * 100),
        ("optimizer.safetensors", b""),
    ],
)
def test_a_file_that_was_written_wrong_is_damage(saved: Path, name: str, data: bytes) -> None:
    """The manifest agrees with it, and still it cannot be read."""
    (saved / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": sha256_file(saved / name)}
    rewrite_manifest(saved, lambda m: m | {"files": m["files"] | {name: entry}})
    verify_checkpoint(saved)
    with pytest.raises(DamagedCheckpointError, match=str(saved)):
        load_checkpoint(saved)


def test_a_newer_format_is_no_damage(saved: Path) -> None:
    """It may have values that this version does not know, and must not be set aside for that."""
    state = json.loads((saved / "state.json").read_text("utf-8"))
    (saved / "state.json").write_text(json.dumps(state | {"format_version": 3, "more": 1}))
    entry = {
        "bytes": (saved / "state.json").stat().st_size,
        "sha256": sha256_file(saved / "state.json"),
    }
    rewrite_manifest(saved, lambda m: m | {"files": m["files"] | {"state.json": entry}})
    with pytest.raises(UsageError, match="has format 3; this llmtrain reads 1, 2"):
        load_checkpoint(saved)


def test_an_older_format_is_read(saved: Path, checkpoint: Checkpoint) -> None:
    """As version 1 wrote it, which kept no course."""
    state = json.loads((saved / "state.json").read_text("utf-8"))
    del state["course"]
    (saved / "state.json").write_text(json.dumps(state | {"format_version": 1}))
    entry = {
        "bytes": (saved / "state.json").stat().st_size,
        "sha256": sha256_file(saved / "state.json"),
    }
    rewrite_manifest(
        saved, lambda m: {"format_version": 1, "files": m["files"] | {"state.json": entry}}
    )
    assert load_checkpoint(saved).state == checkpoint.state


def test_state_that_is_no_number_is_not_saved(checkpoint: Checkpoint) -> None:
    values = checkpoint.state.model_dump() | {"val_loss": float("nan")}
    with pytest.raises(ValueError, match="val_loss"):
        SavedState.model_validate(values)


def test_the_newest_whole_one_is_found(checkpoint: Checkpoint, tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, at_step(checkpoint, step)) for step in (9, 90, 100)]
    told: list[tuple[Path, str]] = []

    def on_damage(path: Path, why: str) -> None:
        told.append((path, why))

    assert newest_good(tmp_path, on_damage) == paths[2]
    assert told == []
    (paths[2] / "state.json").write_text("{}")
    (paths[1] / MANIFEST).unlink()
    assert newest_good(tmp_path, on_damage) == paths[0]
    assert [path for path, _ in told] == [paths[2], paths[1]]
    assert "state.json" in told[0][1]
    assert MANIFEST in told[1][1]
    (paths[0] / "model.safetensors").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match="none of the 3 checkpoints") as caught:
        newest_good(tmp_path, on_damage)
    assert caught.value.hint is not None


def test_where_there_is_none_none_is_found(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.abcd").mkdir()
    (tmp_path / "step-00000001.damaged").mkdir()
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-00000002").write_text("a file")
    assert newest_good(tmp_path, lambda path, why: None) is None
    assert newest_good(tmp_path / "nowhere", lambda path, why: None) is None


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (5, 99_999_999, 100_000_000, 123_456_789_012):
        (tmp_path / f"step-{step:08d}").mkdir()
    found = [int(path.name.removeprefix("step-")) for path in list_checkpoints(tmp_path)]
    assert found == [5, 99_999_999, 100_000_000, 123_456_789_012]


def test_what_is_set_aside_is_kept_and_does_not_count(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for name in ("step-00000001.damaged", "step-00000001.damaged1"):
        path = save_checkpoint(tmp_path, checkpoint)
        assert set_aside(path, "damaged").name == name
        assert list_checkpoints(tmp_path) == []
    assert {path.name for path in (tmp_path / "step-00000001.damaged").iterdir()} == FILES


@pytest.mark.parametrize(
    ("keep_last", "keep_step", "left"),
    [(1, None, [5]), (2, None, [4, 5]), (2, 1, [1, 4, 5]), (2, 5, [4, 5]), (9, 2, [1, 2, 3, 4, 5])],
)
def test_the_newest_and_the_best_are_kept(
    tmp_path: Path, keep_last: int, keep_step: int | None, left: list[int]
) -> None:
    for step in range(1, 6):
        directory = tmp_path / f"step-{step:08d}"
        directory.mkdir()
        (directory / "file").write_text("")
    (tmp_path / ".step-00000001.removed").mkdir()  # of a removal that was cut short
    (tmp_path / ".step-00000001.removed" / "file").write_text("")
    (tmp_path / "step-00000001.damaged").mkdir()
    remove_old(tmp_path, keep_last, keep_step)
    expected = {f"step-{step:08d}" for step in left} | {"step-00000001.damaged"}
    found = {path.name for path in tmp_path.iterdir()}
    if 1 in left:
        expected.add(".step-00000001.removed")
    assert found == expected


def fail_at_call(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, error: BaseException
) -> list[int]:
    """The `number`-th call of `name` raises; the list tells how many calls there were."""
    original, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full", "interrupted"])
@pytest.mark.parametrize("step", [1, 2], ids=["same step", "next step"])
@pytest.mark.parametrize(
    ("name", "calls_in_all"),
    [("write_tensors", 2), ("sync_file", 9), ("write_json", 4), ("sha256_file", 8)],
)
def test_a_failure_in_writing_leaves_what_was_there(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    calls_in_all: int,
    step: int,
    error: BaseException,
) -> None:
    save_checkpoint(tmp_path, checkpoint)
    before = contents(tmp_path)
    for number in range(1, calls_in_all + 1):
        with monkeypatch.context() as patch:
            fail_at_call(patch, writing_module, name, number, error)
            with pytest.raises(type(error)):
                save_checkpoint(tmp_path, at_step(checkpoint, step))
        assert contents(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    with monkeypatch.context() as patch:
        calls = fail_at_call(patch, writing_module, name, calls_in_all + 1, error)
        save_checkpoint(tmp_path, at_step(checkpoint, step))
        assert calls == [calls_in_all]


@pytest.mark.parametrize("number", [1, 2])
def test_a_failure_in_renaming_leaves_what_was_there(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    save_checkpoint(tmp_path, checkpoint)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        fail_at_call(patch, Path, "replace", number, FULL)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            save_checkpoint(tmp_path, checkpoint)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_checkpoint_of_the_same_step_is_replaced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint)
    state = checkpoint.state.model_copy(update={"val_loss": 0.25})
    path = save_checkpoint(tmp_path, dataclasses.replace(checkpoint, state=state))
    assert load_checkpoint(path).state.val_loss == 0.25
    assert list(tmp_path.iterdir()) == [path]


def test_everything_is_on_disk_before_it_has_its_name(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for name in ("sync_file", "sync_directory"):
        original = getattr(writing_module, name)

        def told(path: Path, name: str = name, original: Any = original) -> None:
            named = (tmp_path / "step-00000001").exists()
            events.append(f"{name} {'parent' if path == tmp_path else path.name} {named}")
            original(path)

        monkeypatch.setattr(writing_module, name, told)
    save_checkpoint(tmp_path, checkpoint)
    files = {event.split()[1] for event in events if event.startswith("sync_file")}
    assert files == FILES
    assert events[-3] == f"sync_file {MANIFEST} False"
    assert re.fullmatch(r"sync_directory \.step-00000001\.\w+ False", events[-2])
    assert events[-1] == "sync_directory parent True"


@pytest.mark.skipif(sys.platform == "win32", reason="directories are not locked by their files")
def test_a_checkpoint_can_be_moved(saved: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a model"
    shutil.move(saved, elsewhere)
    assert load_checkpoint(elsewhere).state.step == 1
