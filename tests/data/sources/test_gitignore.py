"""Files are chosen as git chooses them, and by include and exclude; what is left out is counted."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtrain.data.corpus import Corpus
from llmtrain.data.sources.gitignore import PathFilter, Selection
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError, UsageError

TREE = ("a.txt", "b.md", "build/c.txt", "docs/build/e.txt", "docs/d.md", "docs/f.log", "keep.log")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files that hold their own names."""
    for name in TREE:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


def names(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


def chosen(place: Path, **patterns: list[str]) -> list[str]:
    return names(resolve_sources([str(place)], **patterns))  # type: ignore[arg-type]


def without(*left_out: str) -> list[str]:
    return [name for name in TREE if name not in left_out]


def test_include_and_exclude(tree: Path) -> None:
    assert chosen(tree) == list(TREE)
    assert chosen(tree, include=["*.md"]) == ["b.md", "docs/d.md"]
    assert chosen(tree, include=["/*.md", "build/"]) == ["b.md", "build/c.txt", "docs/build/e.txt"]
    assert chosen(tree, exclude=["build/"]) == without("build/c.txt", "docs/build/e.txt")
    assert chosen(tree, exclude=["/build/", "*.log"]) == without(
        "build/c.txt", "docs/f.log", "keep.log"
    )
    assert chosen(tree, include=["docs/**"], exclude=["*.md"]) == ["docs/build/e.txt", "docs/f.log"]
    assert chosen(tree, exclude=["*", "!b.md"]) == ["b.md"]


def test_they_are_of_what_a_glob_finds_too(tree: Path) -> None:
    assert chosen(tree / "**" / "*.txt", exclude=["build/"]) == ["a.txt"]
    assert chosen(tree / "*", include=["docs/*.md"]) == ["docs/d.md"]
    assert chosen(tree / "docs" / "*", include=["d.md"]) == ["docs/d.md"]


def test_a_file_that_is_named_is_read_whatever_they_say(tree: Path) -> None:
    assert chosen(tree / "a.txt", include=["*.md"], exclude=["*.txt"]) == ["a.txt"]


def test_what_is_left_out_is_counted(tree: Path) -> None:
    (tree / ".gitignore").write_text("*.log\n")
    corpus = resolve_sources([str(tree)], include=["*.txt"], exclude=["docs/"])
    assert corpus.describe()[0]["skipped"] == {
        "in .gitignore": 1,
        "in data.exclude": 1,
        "not in data.include": 1,
    }
    with pytest.raises(DataError, match=r"has no text file .*not in data\.include"):
        resolve_sources([str(tree)], include=["*.rst"])


def test_a_directory_that_is_left_out_is_not_looked_into(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / ".gitignore").write_text("/build/\n")
    looked_into: list[str] = []
    scan = os.scandir

    def watched(path: Path) -> object:
        looked_into.append(Path(path).name)
        return scan(path)

    monkeypatch.setattr(os, "scandir", watched)
    resolve_sources([str(tree)], exclude=["docs/build"])
    assert list(dict.fromkeys(looked_into)) == ["tree", "docs"]  # iterdir scans since Python 3.13


GITIGNORES = {
    "suffix": {"": "*.log\n"},
    "anchored": {"": "/build\n"},
    "directory": {"": "build/\n"},
    "taken back": {"": "*.log\n!keep.log\n"},
    "deeper": {"docs": "*.log\nbuild/\n"},
    "deeper anchored": {"docs": "/d.md\n/build/*\n"},
    "deeper taken back": {"": "*.log\n", "docs": "!f.log\n"},
    "not out of what is ignored": {"": "docs/\n", "docs": "!d.md\n"},
    "middle": {"": "docs/*/e.txt\n"},
    "stars": {"": "**/build\n"},
    "comments": {"": "# *.md\n\\#\n\n   \n*.log   \n"},
    "line ends": {"": "*.log\r\nbuild/\r\n"},
    "no pattern": {"": "[\n!\n/\n*.log\n"},
    "everything but": {"": "/*\n!/docs/\n/docs/*\n!/docs/d.md\n"},
    "class": {"": "[ab].*\n"},
    "options": {"": "?.txt\n"},
}


def write_gitignores(tree: Path, name: str) -> None:
    for directory, text in GITIGNORES[name].items():
        (tree / directory / ".gitignore").write_bytes(text.encode())


@pytest.mark.skipif(shutil.which("git") is None, reason="git says what is right")
@pytest.mark.parametrize("name", GITIGNORES)
def test_gitignore_says_what_it_says_to_git(tree: Path, name: str) -> None:
    write_gitignores(tree, name)
    git = ["git", "-C", str(tree), "-c", "core.excludesFile="]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = subprocess.run(
        [*git, "ls-files", "-z", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    untracked = {found for found in listed.split("\0") if found and ".gitignore" not in found}
    assert set(chosen(tree)) == untracked


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("suffix", ("docs/f.log", "keep.log")),
        ("deeper taken back", ("keep.log",)),
        ("not out of what is ignored", ("docs/d.md", "docs/build/e.txt", "docs/f.log")),
    ],
)
def test_gitignore_without_git(tree: Path, name: str, left_out: tuple[str, ...]) -> None:
    write_gitignores(tree, name)
    assert chosen(tree) == without(*left_out)


def test_what_is_named_is_read_although_git_ignores_it(tree: Path) -> None:
    (tree / ".gitignore").write_text("docs/\n*.log\n")
    assert chosen(tree / "docs") == ["docs/build/e.txt", "docs/d.md", "docs/f.log"]
    assert chosen(tree / "keep.log") == ["keep.log"]
    assert chosen(tree / "*.log") == ["keep.log"]
    corpus = resolve_sources([str(tree / "**")])
    assert (names(corpus), corpus.skipped) == (list(TREE), ())


def test_the_repository_of_git_itself_is_never_read(tree: Path) -> None:
    (tree / ".git").mkdir()
    (tree / ".git" / "config").write_text("no")
    (tree / ".github").mkdir()
    (tree / ".github" / "ci.yml").write_text("yes")
    assert chosen(tree / ".g*") == ["yes"]


@pytest.mark.skipif(os.name == "nt", reason="symlinks need a privilege")
def test_a_gitignore_that_is_a_link_or_no_file_says_nothing(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("*\n")
    (tree / ".gitignore").symlink_to(tmp_path / "elsewhere")
    (tree / "docs" / ".gitignore").mkdir()
    assert chosen(tree) == list(TREE)


def test_a_gitignore_may_hold_any_bytes(tree: Path) -> None:
    (tree / ".gitignore").write_bytes(b"\xff\xfe\0\n*.log\n" + random.Random(0).randbytes(9999))
    assert "keep.log" not in chosen(tree)


def test_no_pattern_is_a_usage_error() -> None:
    for key in ("include", "exclude"):
        with pytest.raises(UsageError, match=f"data.{key}") as caught:
            resolve_sources(["builtin:python"], **{key: ["!"]})  # type: ignore[arg-type]
        assert "\n" not in caught.value.message


@given(patterns=st.lists(st.text("ab*?[]!/\\.#- ", max_size=8), max_size=4))
@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_any_pattern_is_one_or_is_refused(patterns: list[str]) -> None:
    try:
        sieve = PathFilter(Selection(exclude=tuple(patterns)))
    except UsageError:
        return
    for path in ("a", "a/b.a", "a/b/", "-"):
        assert sieve.reason_against(path) in (None, "in data.exclude")
