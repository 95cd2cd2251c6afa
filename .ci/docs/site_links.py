"""Check the links of a built site, in its HTML, without any request."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

_LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
_NOT_LOADED = {"canonical", "edit", "next", "prev", "alternate"}  # what a `link` is for


class _Page(HTMLParser):
    """The links of a page, what it loads, and the anchors that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the attributes of a tag."""
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in _LOADED and _LOADED[tag] in values and values.get("rel") not in _NOT_LOADED:
            self.loaded.append(values[_LOADED[tag]])


def complaints(site: Path) -> list[str]:
    """Return every link and every loaded file that leads nowhere, and what is loaded from outside.

    Links to other sites are not followed.
    """
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        for link in page.loaded:
            if urlsplit(link).netloc:
                found.append(f"{where} loads {link} from another server")
            elif not urlsplit(link).scheme and not _target(site, path, link).is_file():
                found.append(f"{where} loads {link}, which is not there")
        for link in page.links:
            if not urlsplit(link).scheme and not urlsplit(link).netloc:
                found += _of_link(site, path, link, pages)
    return found


def _of_link(site: Path, path: Path, link: str, pages: dict[Path, _Page]) -> list[str]:
    where = path.relative_to(site).as_posix()
    target = _target(site, path, link)
    anchor = unquote(urldefrag(link).fragment)
    if not target.is_file() or not target.is_relative_to(site):
        return [f"{where} links to {link}, which is not there"]
    if anchor and target in pages and anchor not in pages[target].anchors:
        return [f"{where} links to {link}: the page has no such heading"]
    return []


def _target(site: Path, path: Path, link: str) -> Path:
    """Return the file that a link of the page `path` leads to."""
    name = unquote(urlsplit(link).path)
    if not name:
        return path
    base = site if name.startswith("/") else path.parent
    target = (base / name.lstrip("/")).resolve()
    return target / "index.html" if target.is_dir() else target
