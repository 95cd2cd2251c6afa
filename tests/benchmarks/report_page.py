"""How large a report of a long run is, how long it takes, and what Chromium and axe say of it.

    python -m tests.benchmarks.report_page --steps 10000

The run is written, not trained; `--run` reports on one that was. Pictures at both widths and in
both colour schemes, and the printed page as PDF, are written to `--out`. axe-core is that of the
package axe-playwright-python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.programs import program_parser
from tests.report.browser import BROWSER, SCHEMES, WIDTHS, axe_script, inspect, launched
from tests.report.runs import write_run


def main(arguments: Sequence[str]) -> int:
    """Print size, seconds, and a line for each way to look at the page; 1 if anything is wrong."""
    values = _parser().parse_args(arguments)
    values.out.mkdir(parents=True, exist_ok=True)
    page = values.out / "report.html"
    with tempfile.TemporaryDirectory() as place:
        run = str(values.run) if values.run else write_run(Path(place) / "run", steps=values.steps)
        command = [sys.executable, "-m", "llmtrain", "runs", "report", run, "--out", str(page)]
        begun_s = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.monotonic() - begun_s, os.times()
    cpu_s = after.children_user + after.children_system
    sys.stdout.write(f"{page.stat().st_size:,} bytes, {seconds:.2f} s, {cpu_s:.2f} s of CPU\n")
    if BROWSER is None:
        sys.stdout.write("no browser is installed\n")
        return 0
    is_good = True
    with launched() as browser:
        for width in WIDTHS:
            for scheme in SCHEMES:
                shot = values.out / f"report-{width}-{scheme}.png"
                found = inspect(browser, page, width, scheme, values.axe, shot)
                wrong = [*found.said, *found.requested, *found.violations]
                is_good = is_good and not wrong and not found.overflow_pixels
                sys.stdout.write(
                    f"{width} pixels, {scheme}: {len(found.said)} on the console, "
                    f"{len(found.requested)} requests, {found.overflow_pixels} pixels too wide, "
                    f"{len(found.violations)} violations\n"
                )
                sys.stdout.writelines(f"  {each}\n" for each in wrong)
        sheet = browser.new_page()
        sheet.goto(page.absolute().as_uri())
        sheet.pdf(path=str(values.out / "report.pdf"))
    return 0 if is_good else 1


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("--steps", type=int, default=10_000, help="logged steps of the run that is written")
    add("--run", type=Path, help="a run directory to report on instead")
    add("--axe", type=Path, default=axe_script(), help="another axe.min.js")
    add(
        "--out", type=Path, default=Path(tempfile.gettempdir()) / "report-page", help="for pictures"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
