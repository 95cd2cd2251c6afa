"""File names that are not UTF-8 work as data, and are written escaped wherever they are saved."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path

import pytest

from llmtrain.data.shards.cache import cache_entries
from llmtrain.data.shards.manifest import read_manifest
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.load import load_profile, profile_from_values
from llmtrain.profile.setting import Setting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode there")
TEXT = "some words that are said once or twice\n" * 200


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    path = os.fsencode(tmp_path) + b"/caf\xe9/a\xff.txt"
    Path(os.fsdecode(path)).parent.mkdir()
    Path(os.fsdecode(path)).write_text(TEXT)
    return os.fsdecode(path)


@pytest.mark.parametrize("kind", ["file", "directory", "glob"])
def test_a_name_that_is_no_utf_8_is_data(name: str, kind: str, tmp_path: Path) -> None:
    spec = {"file": name, "directory": str(Path(name).parent), "glob": f"{Path(name).parent}/*"}
    flags = {"data.sources": Setting([spec[kind]], f"--data {spec[kind]}")}
    loaded = load_profile("cpu-tiny", environment={}, flags=flags)
    (saved,) = loaded.profile.data.specs
    assert "caf\\xe9" in saved
    json.dumps([loaded.profile.values(), loaded.origins], ensure_ascii=False).encode()
    again = profile_from_values(loaded.profile.values(), "run.yaml")
    work = PrepareContext(1, lambda _: None, lambda: None)
    dataset = prepare_dataset(again.data, 300, work)
    with closing(dataset.shards):
        manifest = read_manifest(dataset.shards.directory)
    assert manifest is not None
    assert manifest["sources"][0]["spec"] == saved
    entries = cache_entries(tmp_path / "cache")
    assert {entry.made_from for entry in entries} == {(saved,)}


def test_a_name_that_has_such_an_escape_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "caf\\xe9.txt"
    path.write_text("text")
    assert [each.text for each in resolve_sources([str(path)]).documents()] == ["text"]
