"""The picture of a terminal: what stands on its screen, and nothing from the network."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.checkout import ROOT

pytest.importorskip("pyte")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo-terminals")

if sys.platform != "win32":
    import pyte
    import terminal_svg

PICTURE = ROOT / "docs" / "terminal.svg"


def test_the_screen_of_a_command_is_read_as_it_stands(tmp_path: Path) -> None:
    lines = [line.plain for line in terminal_svg.screen_of("llmtrain --version", tmp_path)]
    assert len(lines) == 1
    assert re.fullmatch(r"llmtrain \d+\.\d+\.\d+.*", lines[0])


def test_a_command_that_fails_ends_the_recording(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nonsense"):
        terminal_svg.screen_of("llmtrain nonsense", tmp_path)


def test_lines_that_were_written_over_are_gone_and_colours_stay() -> None:
    screen = pyte.Screen(20, 5)
    pyte.Stream(screen).feed("step 1\r\x1b[Kstep \x1b[1;31m2\x1b[0m\r\n\r\n\x1b[90mend\x1b[0m")
    lines = terminal_svg.lines_of(screen)
    assert [line.plain for line in lines] == ["step 2", "", "end"]
    styles = [str(span.style) for line in lines for span in line.spans if str(span.style)]
    assert any("red" in style and "bold" in style for style in styles)
    assert any("bright_black" in style for style in styles)


def test_the_picture_shows_the_recorded_commands_and_loads_nothing() -> None:
    text = PICTURE.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    for command in terminal_svg.COMMANDS:
        assert command.replace("'", "&#x27;").replace(" ", "&#160;") in text
    assert set(re.findall(r'https?://[^"\s<]+', text)) <= {"http://www.w3.org/2000/svg"}
