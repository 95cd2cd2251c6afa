"""The tool's own output, caches and packages are not its input, unless they are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.split import plan_split
from llmtrain.errors import DataError
from tests.data.sources.test_resolve import texts, write

pa = pytest.importorskip("pyarrow")

RUN = ("runs/a/run.yaml", "runs/a/metrics.jsonl", "runs/a/checkpoints/step-1/README.md")
OUTPUTS = {
    "a run": (RUN, "a run of llmtrain"),
    "a run elsewhere": (
        ("deep/er/x/run.yaml", "deep/er/x/checkpoints/c/a.md"),
        "a run of llmtrain",
    ),
    "a cache": (("c/locks/a.lock", "c/shards/k/manifest.json", "c/x.txt"), "a cache of llmtrain"),
    "a checkpoint": (("c/manifest.json", "c/model.safetensors", "c/README.md"), "a model, a"),
    "a tokenizer": (("tok/tokenizer.json", "tok/tokenizer_config.json", "tok/merges.txt"), "a mod"),
    "an environment": (("e/pyvenv.cfg", "e/lib/a.py"), "a virtual environment"),
    "node_modules": (("node_modules/x/README.md",), "installed packages or compiled code"),
    "site-packages": (("lib/site-packages/x/a.py",), "installed packages or compiled code"),
    "__pycache__": (("src/__pycache__/a.txt",), "installed packages or compiled code"),
}


@pytest.mark.parametrize(("names", "reason"), OUTPUTS.values(), ids=list(OUTPUTS))
@pytest.mark.parametrize("pattern", ["", "**", "**/*", "*"])
def test_what_is_no_text_of_the_user_is_skipped_and_counted(
    tmp_path: Path, names: tuple[str, ...], reason: str, pattern: str
) -> None:
    write(tmp_path / "note.txt", "note")
    for name in names:
        write(tmp_path / name, '{"text": "output"}')
    corpus = resolve_sources([str(tmp_path / pattern)])
    assert texts(corpus) == ["note"]
    assert any(each.startswith(reason) for each in corpus.skipped_by_reason)


@pytest.mark.parametrize("names", [names for names, _ in OUTPUTS.values()], ids=list(OUTPUTS))
def test_it_is_read_where_it_is_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = write(tmp_path / names[-1], '{"text": "named"}')
    for name in names[:-1]:
        write(tmp_path / name, "{}")
    for spec in (path, path.parent, path.parent / "*"):
        assert len(texts(resolve_sources([str(spec)]))) >= 1


def test_the_cache_in_use_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "mine"))
    write(tmp_path / "mine/measurements/a.txt", "cached")
    write(tmp_path / "note.txt", "note")
    assert texts(resolve_sources([str(tmp_path)])) == ["note"]


def test_members_of_archives_too(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/node_modules/b/README.md", "package")
        archive.writestr("a/note.md", "note")
    assert texts(resolve_sources([str(tmp_path / "a.zip")])) == ["note"]


def saved(directory: Path, *rows: str) -> None:
    """Write what `Dataset.save_to_disk` writes, and a cache file of `Dataset.map` beside it."""
    directory.mkdir(parents=True)
    table = pa.table({"text": list(rows)})
    for name in ("data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"):
        with (
            pa.OSFile(str(directory / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    write(directory / "state.json", json.dumps(state))
    write(directory / "dataset_info.json", "{}")


@pytest.mark.parametrize("pattern", ["", "*", "**/*.arrow", "*.arrow"])
def test_of_a_saved_dataset_the_listed_files_are_read(tmp_path: Path, pattern: str) -> None:
    saved(tmp_path / "ds", "a", "b")
    assert texts(resolve_sources([str(tmp_path / "ds" / pattern)])) == ["a", "b"]
    assert texts(resolve_sources([str(tmp_path)])) == ["a", "b"]


def test_a_cache_file_that_is_named_is_read(tmp_path: Path) -> None:
    saved(tmp_path / "ds", "a")
    assert texts(resolve_sources([str(tmp_path / "ds/cache-0123456789abcdef.arrow")])) == ["a"]


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    """What `DatasetDict.save_to_disk` writes."""
    directory = tmp_path / "dict"
    for split in ("train", "validation", "test"):
        saved(directory / split, *(f"{split} {number}" for number in range(3)))
    write(directory / "dataset_dict.json", '{"splits": ["train", "validation", "test"]}')
    return directory


@pytest.mark.parametrize("has_list", [True, False])
@pytest.mark.parametrize("below", [True, False])
def test_splits_of_a_saved_dictionary_are_not_mixed(
    dictionary: Path, has_list: bool, below: bool
) -> None:
    if not has_list:
        (dictionary / "dataset_dict.json").unlink()
    corpus = resolve_sources([str(dictionary if not below else dictionary.parent)])
    pieces = list(plan_split(corpus, corpus.measure(), 0.1).assign(corpus.documents()))
    assert {piece.document.text.split()[0]: piece.side for piece in pieces} == {
        "train": "train",
        "validation": "validation",
    }
    assert len(pieces) == 6
    assert corpus.skipped_by_reason["the test split of a dataset"] == 1
    assert corpus.describe()[0]["validation_files"] == 1


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_that_is_named_is_trained_on(dictionary: Path, split: str) -> None:
    corpus = resolve_sources([str(dictionary / split)])
    assert texts(corpus) == [f"{split} {number}" for number in range(3)]
    assert not corpus.has_validation


def test_splits_in_the_names_of_files(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / f"data/{split}-00000-of-00001.jsonl", json.dumps({"text": split}))
    corpus = resolve_sources([str(tmp_path)])
    assert {document.text: document.held_out for document in corpus.documents()} == {
        "train": False,
        "validation": True,
    }


def test_data_validation_is_the_validation_text(tmp_path: Path, dictionary: Path) -> None:
    write(tmp_path / "notes/a.txt", "train")
    held_out = write(tmp_path / "notes/b.txt", "held out")
    corpus = resolve_sources([str(tmp_path / "notes")], validation=str(held_out))
    split = plan_split(corpus, corpus.measure(), 0.1)
    sides = {piece.document.text: piece.side for piece in split.assign(corpus.documents())}
    assert sides == {"train": "train", "held out": "validation"}
    corpus = resolve_sources([str(dictionary)], validation=str(held_out))
    held = [document.text for document in corpus.documents() if document.held_out]
    assert held == ["held out"]
    assert not any(text.startswith("validation") for text in texts(corpus))


def test_a_corpus_with_validation_text_has_another_fingerprint(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        write(tmp_path / name, name)
    one, two = (str(tmp_path / name) for name in ("a.txt", "b.txt"))
    plain = resolve_sources([one, two]).measure().fingerprint
    assert resolve_sources([one], validation=two).measure().fingerprint != plain


def test_all_text_held_out_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.txt", "text"))
    corpus = resolve_sources([path], validation=path)
    with pytest.raises(DataError, match="no text to train on"):
        plan_split(corpus, corpus.measure(), 0.1)
