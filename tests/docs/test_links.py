"""Every link in the documentation leads somewhere, and every file and module it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "RELEASING.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "tests").rglob("README.md"),
    ]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Paths in the repository; Python files also relative to the package, as in `train/loop.py`.
PATH = re.compile(
    r"`((?:llmtrain|tests|docs|profiles)/[\w./*-]*|[A-Z]+\.md|\.[\w-]+/[\w/.-]+|[\w/]+/\w+\.py)`"
)
MODULE = re.compile(r"\b((?:llmtrain|tests)(?:\.[a-z_]\w*)+)(?:\.[A-Z]\w*)?")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.M)
    plain = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def dead_links(path: Path) -> list[str]:
    dead = []
    for link in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def missing_paths(path: Path) -> list[str]:
    names = {name.rstrip("/") for name in PATH.findall(path.read_text(encoding="utf-8"))}
    return sorted(name for name in names if not _is_path(name))


def _is_path(name: str) -> bool:
    return any(ROOT.glob(name)) or (name.endswith(".py") and (ROOT / "llmtrain" / name).is_file())


def missing_modules(path: Path) -> list[str]:
    names = set(MODULE.findall(path.read_text(encoding="utf-8")))
    return sorted(name for name in names if not (_is_module(name) or _is_attribute(name)))


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def _is_attribute(name: str) -> bool:
    """Whether the last part of `name` is defined in the module that the others name."""
    module, _, attribute = name.rpartition(".")
    if not module or not _is_module(module):
        return False
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (
        file.is_file()
        and re.search(rf"\b{attribute}\b", file.read_text(encoding="utf-8")) is not None
    )


@each_page
def test_every_link_leads_somewhere(path: Path) -> None:
    assert dead_links(path) == []


@each_page
def test_every_file_that_is_named_exists(path: Path) -> None:
    assert missing_paths(path) == []


@each_page
def test_every_module_that_is_named_exists(path: Path) -> None:
    assert missing_modules(path) == []


def test_every_page_that_the_code_names_exists() -> None:
    sources = [*(ROOT / "llmtrain").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    for path in sources:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w\"'/])docs/[\w/]+\.md", text):
            assert (ROOT / name).is_file(), f"{path.relative_to(ROOT)} names {name}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.name != "README.md"}
    linked = {(ROOT / "docs" / link).resolve() for link in LINK.findall(index)}
    assert {str(page) for page in pages - linked} == set()


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c\n[x](no.md) [y](#no) [z](#a-b-c) `llmtrain/no.py` `llmtrain/units.py`\n"
        "`train/loop.py` `train/no.py`\n"
        "`llmtrain.no.such` `llmtrain.units.parse_count` `llmtrain.units.parse_nothing`\n"
    )
    assert dead_links(page) == ["no.md", "#no"]
    assert missing_paths(page) == ["llmtrain/no.py", "train/no.py"]
    assert missing_modules(page) == ["llmtrain.no.such", "llmtrain.units.parse_nothing"]
