"""Build the documentation site, and check every link: python .ci/docs/build_site.py DIRECTORY

Needs the extra `docs`. The pages are those of docs/ and the ones that site_pages.py writes from the
code; the navigation is the index docs/README.md. DIRECTORY gets the site, which opens from a disk.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_HERE = Path(__file__).resolve().parent
ROOT = _HERE.parent.parent
sys.path.insert(0, str(ROOT))  # what the reference is written from

import site_links  # noqa: E402
import site_pages  # noqa: E402

_DOCS = ROOT / "docs"
_OTHER_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "RELEASING.md")
_GENERATED = {  # title by page, after the page that they complete
    "reference/commands.md": [("Every command's help", "reference/cli.md")],
    "reference/json.md": [("JSON Schemas", "reference/schemas.md")],
    "reference/api.md": [("Python: signatures", "reference/python.md")],
}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def main() -> None:
    """Build and check; the exit code is 1 with every complaint where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        site = build(Path(work))
        found = site_links.complaints(site)
        if found:
            raise SystemExit("\n".join(found))
        shutil.rmtree(options.directory, ignore_errors=True)
        shutil.copytree(site, options.directory)
    count = len(list(options.directory.rglob("*.html")))
    sys.stdout.write(f"{count} pages in {options.directory}, every link leads somewhere\n")


def build(work: Path) -> Path:
    """Write pages and configuration into `work`, and build; return the directory of the site."""
    write_pages(work / "pages")
    base = (_HERE / "site.toml").read_text(encoding="utf-8")
    index = (_DOCS / "README.md").read_text(encoding="utf-8")
    navigation = f"nav = {_toml(list(navigation_of(index)))}"
    (work / "zensical.toml").write_text(
        base.replace("nav = []", navigation), encoding="utf-8", newline="\n"
    )
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(
        command, cwd=work, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if built.returncode:
        raise SystemExit(built.stdout)
    site = (work / "site").resolve()
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(readable_aloud(text), encoding="utf-8", newline="\n")
    return site


def readable_aloud(html: str) -> str:
    """Return a page in which empty cells are no headings, and boxes of a list say their state."""
    html = re.sub(r"<th([^>]*)></th>", r"<td\1></td>", html)
    html = re.sub(
        r'<input type="checkbox"([^>]*) checked',
        r'<input aria-label="done"\1 checked type="checkbox"',
        html,
    )
    return html.replace('<input type="checkbox"', '<input aria-label="open" type="checkbox"')


def write_pages(pages: Path) -> None:
    """Write the source of every page, with links as they are in the site."""
    texts = {path: path.relative_to(_DOCS).as_posix() for path in sorted(_DOCS.rglob("*.md"))}
    texts |= {ROOT / name: name for name in _OTHER_PAGES}
    texts[_DOCS / "README.md"] = "index.md"
    for path, name in texts.items():
        target = pages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_in_site(path, name, texts), encoding="utf-8", newline="\n")
    for path in sorted(_DOCS.rglob("*")):
        if path.suffix in (".svg", ".png", ".txt"):
            shutil.copy(path, pages / path.relative_to(_DOCS))
    (pages / "assets").mkdir()
    for name in ("site.css", "site.js"):
        shutil.copy(_HERE / name, pages / "assets")
    for name, text in site_pages.generated_pages(_DOCS / "examples").items():
        (pages / name).parent.mkdir(exist_ok=True)
        (pages / name).write_text(text, encoding="utf-8", newline="\n")


def _in_site(path: Path, name: str, texts: dict[Path, str]) -> str:
    """Return a page's Markdown with its links led to pages of the site.

    A link to what is only in the checkout (`tests/faults/`) becomes its text.
    """

    def follow(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if not target or ":" in target:
            return link[0]
        place = (path.parent / target).resolve()
        if place == _DOCS / "examples":
            found = "examples.md"
        elif place in texts:
            found = texts[place]
        elif place.is_relative_to(_DOCS) and place.is_file():
            found = place.relative_to(_DOCS).as_posix()
        else:
            return text
        return f"[{text}]({'../' * name.count('/')}{found}{anchor})"

    parts = _FENCE.split(path.read_text(encoding="utf-8"))
    return "".join(part if part.startswith("```") else _LINK.sub(follow, part) for part in parts)


def navigation_of(index: str) -> Iterator[dict[str, object]]:
    """Yield the entries of the navigation: a section for each bold heading of the index."""
    yield {"Documentation": "index.md"}
    for title, text in re.findall(
        r"^\*\*(.+?)\*\*(.*?)(?=^\*\*|\Z)", index, re.DOTALL | re.MULTILINE
    ):
        entries: list[dict[str, object]] = []
        for name, target in re.findall(r"\[(.+?)\]\(([\w./]+?)\)", text):
            page = "examples.md" if target == "examples/" else target.replace("../", "")
            entries.append({name: page})
            entries += [{more: generated} for more, generated in _GENERATED.get(page, [])]
        yield {title: entries}
    yield {"Changes": "CHANGELOG.md"}


def _toml(value: object) -> str:
    """Return a list of tables, each with one key, as TOML."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
