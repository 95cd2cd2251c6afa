"""The page in a browser: it types, streams, stops, and reaches nothing else."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.text import Piece, TextStream, TokenText
from tests.serve.conftest import Running, Serve

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e&lt;"


def test_its_files_let_it_reach_nothing_else(client: httpx.Client) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
    ):
        response = client.get(path)
        assert response.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "http" not in response.text.replace("https://html.spec", "")
        assert "innerHTML" not in response.text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no browser is installed")
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(params=[400, 1400])
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of a width, on which nothing may go wrong."""
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    page, wrong = context.new_page(), []
    page.set_default_timeout(20_000)
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message) or dialog.dismiss())
    page.wrong = wrong
    yield page
    context.close()


def require_sound(page: Any, url: str) -> None:
    """Nothing was said to be wrong, asked of others, or wider than the page."""
    assert page.wrong == []
    asked = page.evaluate("performance.getEntriesByType('resource').map((each) => each.name)")
    assert [name for name in asked if not name.startswith((url, "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def save_screenshot(page: Any, name: str) -> None:
    directory = os.environ.get("PAGE_SCREENSHOTS")
    if directory:
        width = page.viewport_size["width"]
        page.screenshot(path=str(Path(directory) / f"{name}-{width}.png"), full_page=True)


def test_a_text_is_continued_and_its_tokens_explained(page: Any, server: Running) -> None:
    page.goto(server.url)
    page.wait_for_selector("#modes:not([hidden])")
    page.check("input[value=text]")
    page.fill("#prompt", "def ")
    page.fill("#max_tokens", "12")
    page.fill("#seed", "1")
    page.click("#send")
    page.wait_for_selector("#stop[disabled]")
    assert page.inner_text(".prompt") == "def "
    tokens = page.locator(".token")
    assert 1 <= tokens.count() <= 12
    tokens.first.hover()
    rows = page.locator("#likely tbody tr").all_inner_texts()
    assert 5 <= len(rows) <= 6
    assert all(row.endswith("%") for row in rows)
    tokens.last.focus()
    assert page.locator("#likely tr.chosen").count() == 1
    assert "tokens/s" in page.inner_text("#status")
    save_screenshot(page, "text")
    require_sound(page, server.url)


def test_a_conversation_goes_on(page: Any, server: Running) -> None:
    page.goto(server.url)
    page.wait_for_selector("#modes:not([hidden])")
    page.fill("#max_tokens", "5")
    for count in (1, 2):
        page.fill("#prompt", "Hi")
        page.press("#prompt", "Enter")
        page.locator(".turn.assistant").nth(count - 1).wait_for()
        page.wait_for_selector("#stop[disabled]")
    page.fill("#prompt", "word " * 200)
    page.click("#send")
    page.wait_for_selector(".turn.error")
    assert "context" in page.inner_text(".turn.error")
    save_screenshot(page, "chat")
    page.click("#clear")
    assert page.locator(".turn").count() == 0
    page.wrong[:] = [each for each in page.wrong if "400" not in each]  # the browser's own line
    require_sound(page, server.url)


def test_it_stops_and_hostile_text_is_text(
    page: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(slots=1) as running:
        generator = running.service.generator
        step = TextGenerator.step

        def hostile_step() -> list[tuple[TextStream, Piece]]:
            time.sleep(0.05)
            found = []
            for stream, piece in step(generator):
                tokens = tuple(TokenText(each.token, HOSTILE, b"") for each in piece.tokens)
                found.append((stream, Piece(HOSTILE, tokens)))
            return found

        monkeypatch.setattr(generator, "step", hostile_step)
        page.goto(running.url)
        page.wait_for_selector("#modes:not([hidden])")
        page.fill("#prompt", "<img src=x>")
        page.fill("#max_tokens", "50")
        page.click("#send")
        page.locator(".token").nth(2).wait_for(state="attached")
        page.click("#stop")
        page.wait_for_selector("#stop[disabled]")
        deadline_s = time.monotonic() + 10
        while running.service.scheduler._running:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert page.locator("#conversation img, #conversation script").count() == 0
        assert HOSTILE in page.inner_text(".turn.assistant")
        save_screenshot(page, "hostile")
        require_sound(page, running.url)


def test_a_key_is_asked_for_where_one_is_needed(page: Any, serve: Serve) -> None:
    key = "a-key-of-twenty-char"
    with serve(key=key) as running:
        page.goto(running.url)
        page.wait_for_selector("#key_label:not([hidden])")
        page.fill("#key", key)
        page.press("#key", "Tab")
        page.get_by_role("heading", name="small").wait_for()
        page.wrong[:] = [each for each in page.wrong if "401" not in each]
        require_sound(page, running.url)
