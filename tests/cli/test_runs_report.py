from __future__ import annotations

import shutil
from pathlib import Path
from urllib.request import urlopen

import pytest

pytest.importorskip("matplotlib")

from llmtrain.report.live import PageServer
from tests.cli.conftest import Command


def test_a_report_is_written_in_its_run(llmtrain: Command, trained: Path, place: Path) -> None:
    run = shutil.copytree(trained, place / "runs" / "a")
    document = llmtrain("runs", "report", "a", "--json").document
    assert document["report"] == str(Path("runs") / "a" / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    assert document["report_bytes"] == len(text.encode())
    assert llmtrain("runs", "report", "a", trained, "--out", "both.html").out == "both.html\n"
    assert "Side by side" in (place / "both.html").read_text(encoding="utf-8")


def test_a_run_can_end_with_its_report(llmtrain: Command, place: Path) -> None:
    settings = ("--steps", 3, "--set", "report=true", "--out", "run")
    outcome = llmtrain("train", "-p", "tiny.yaml", *settings)
    assert outcome.code == 0
    assert "report.html" in outcome.err
    assert "Loss by tokens" in (place / "run" / "report.html").read_text(encoding="utf-8")


def test_missing_libraries_are_named_before_training(
    llmtrain: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = llmtrain("train", "-p", "tiny.yaml", "--set", "report=true", "--out", "run")
    assert (outcome.code, "llmtrain[report]" in outcome.err) == (2, True)


def test_a_report_is_served(
    llmtrain: Command, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []

    def serve_once(self: PageServer, is_over: object) -> None:
        import threading

        thread = threading.Thread(target=self.handle_request)
        thread.start()
        with urlopen(self.url, timeout=20) as answer:
            pages.append(answer.read().decode())
        thread.join()

    monkeypatch.setattr(PageServer, "serve_until", serve_once)
    document = llmtrain("runs", "report", trained, "--watch", "--json").document
    assert document["url"].startswith("http://127.0.0.1:")
    assert "Loss by tokens" in pages[0]
    assert llmtrain("runs", "report", trained, "--watch", "--out", "x.html").code == 2
