"""Look at a built site in Chromium: python .ci/docs/look_at_site.py SITE PICTURES

At the widths of a phone and of a desktop, each page is checked for what keeps people from reading
it (axe: WCAG 2.2 A and AA), for scrolling sideways and for errors of its scripts, and is
photographed. The search is typed into. Needs the extra `dev` and an installed Chromium.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

_WIDTHS = (400, 1400)
_RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
# No page may need the network, and Chromium itself may not either.
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_FLAGS += ["--disable-sync", "--disable-component-update", "--disable-quic"]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Print nothing."""


def main() -> None:
    """Look; the exit code is 1 with every complaint where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, metavar="SITE")
    parser.add_argument("pictures", type=Path, metavar="PICTURES")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="such as index.html; all")
    options = parser.parse_args()
    handler = functools.partial(_Quiet, directory=str(options.site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    options.pictures.mkdir(parents=True, exist_ok=True)
    every = sorted(
        path.relative_to(options.site).as_posix() for path in options.site.rglob("*.html")
    )
    names = options.pages or every
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        found = [
            complaint
            for width in _WIDTHS
            for complaint in _of_width(browser, address, names, width, options.pictures)
        ]
        found += _of_search(browser, address)
    server.shutdown()
    sys.stdout.write("".join(f"{each}\n" for each in found))
    sys.stdout.write(f"{len(names)} pages at {_WIDTHS} px, {len(found)} complaints\n")
    raise SystemExit(1 if found else 0)


def _of_width(
    browser: Browser, address: str, names: list[str], width: int, pictures: Path
) -> list[str]:
    found: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("pageerror", lambda error: found.append(f"{page.url}: {error}"))
    page.on("request", lambda request: found.extend(_outside(request.url, address)))
    for name in names:
        page.goto(f"{address}/{name}")
        page.screenshot(path=str(pictures / f"{name.replace('/', '-')[:-5]}-{width}.png"))
        found += [f"{name} at {width} px: {each}" for each in (*_axe(page), *_sideways(page))]
    page.close()
    return found


def _outside(url: str, address: str) -> list[str]:
    return [] if url.startswith((address, "data:", "blob:")) else [f"asks for {url}"]


def _axe(page: Page) -> list[str]:
    violations = Axe().run(page, options=_RULES).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {each['help']}, {len(each['nodes'])} times: "
        + " ".join(each["nodes"][0]["html"].split())[:160]
        for each in violations
    ]


def _sideways(page: Page) -> list[str]:
    wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return [f"scrolls sideways by {wider} px"] if wider > 0 else []


def _of_search(browser: Browser, address: str) -> list[str]:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"{address}/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("tokens_per_step", delay=20)
    page.wait_for_timeout(1500)
    found = page.get_by_text("tokens_per_step").count()
    page.close()
    return [] if found else ["the search finds no tokens_per_step"]


if __name__ == "__main__":
    main()
