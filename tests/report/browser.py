"""A report in headless Chromium, which may reach nothing: what goes wrong, and axe's complaints."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
WIDTHS = (400, 1400)
SCHEMES = ("light", "dark")
_OPTIONS = ("--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync")


@dataclass(frozen=True, slots=True)
class Inspected:
    """A page at one width in one colour scheme."""

    width: int
    scheme: str
    said: list[str]  # on the console
    requested: list[str]  # besides the page itself
    overflow_pixels: int  # that the page is wider than the window
    violations: list[str]  # of axe; empty without it


def axe_script() -> Path | None:
    """Return axe-core, which the package axe-playwright-python has in it; None without it."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name("axe.min.js")


@contextmanager
def launched() -> Iterator[Any]:
    """Yield the installed Chromium."""
    from playwright.sync_api import sync_playwright

    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    options = [*_OPTIONS, *(["--no-sandbox"] if is_root else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield browser
        browser.close()


def inspect(
    browser: Any, page_file: Path, width: int, scheme: str, axe: Path | None, shot: Path | None
) -> Inspected:
    """Open a report, with every request but its own stopped. `shot`: a picture is written."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=axe is not None
    )
    said, requested, url = list[str](), list[str](), page_file.absolute().as_uri()

    def route(one: Any) -> None:
        if one.request.url == url:
            one.continue_()
        else:
            requested.append(one.request.url)
            one.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
    page.goto(url)
    overflow = int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))
    if shot is not None:
        page.screenshot(path=str(shot), full_page=True)
    violations = []
    if axe is not None:
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        page.evaluate(axe.read_text(encoding="utf-8"))
        for each in page.evaluate("axe.run()")["violations"]:
            violations += [f"{each['id']}: {node['html'][:120]}" for node in each["nodes"]]
    context.close()
    return Inspected(width, scheme, said, requested, overflow, violations)
