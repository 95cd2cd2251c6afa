"""The pages of the documentation that come with the package, as `llmtrain help` shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import llmtrain

_FOLDERS = ("guides", "reference")
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_COMMENT = re.compile(r"<!--.*?-->\n*", re.DOTALL)


def pages() -> dict[str, Path]:
    """Return the file of every page by its topic, the guides first."""
    package = Path(llmtrain.__file__).parent
    for docs in (package / "docs", package.parent / "docs"):
        if docs.is_dir():
            return {
                path.stem.replace("_", "-"): path
                for folder in _FOLDERS
                for path in sorted((docs / folder).glob("*.md"))
            }
    return {}


def title_of(path: Path) -> str:
    """Return the heading of a page."""
    with path.open(encoding="utf-8") as lines:
        return next(lines).lstrip("# ").strip()


def readable(page: Path, topics: Mapping[str, Path]) -> str:
    """Return a page's Markdown for a terminal: a link to a page is the command that shows it."""
    commands = {path.resolve(): f"`llmtrain help {name}`" for name, path in topics.items()}

    def follow(link: re.Match[str]) -> str:
        shown, target = link[1], link[2]
        if "://" in target:
            return f"{shown}: {target}"
        command = commands.get((page.parent / target.partition("#")[0]).resolve())
        return f"{shown} ({command})" if command and not target.startswith("#") else shown

    parts = _FENCE.split(_COMMENT.sub("", page.read_text(encoding="utf-8")))
    return "".join(part if part.startswith("```") else _LINK.sub(follow, part) for part in parts)
