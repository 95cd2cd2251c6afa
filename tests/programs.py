"""What the programs of tests/ have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.checkout import ROOT


def program_parser(file: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of a program, from its `__file__` and `__doc__`; help shows defaults."""
    module = ".".join(Path(file).resolve().relative_to(ROOT.resolve()).with_suffix("").parts)
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=(doc or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
