"""Run the long forms of the programs that break things, each to its end; exit 1 if one failed."""

from __future__ import annotations

import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PROGRAMS = (  # within three hours on two cores
    "damage --mutations 1000",
    "kills --kills 100",
    "kills --ranks 2 --kills 50",
    "preparation_kills --kills 100 --workers 2",
    "signals --times 5",
    "bad_numbers --trials 20",
    "fuzz --inputs 10000",
    "round_trip --data docs",
)


def main() -> None:
    """Install, and run each program with its output."""
    venv.create(ROOT / ".venv", with_pip=True)
    python = str(ROOT / ".venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt"]
    subprocess.run([*install, "--editable", ".[test]"], cwd=ROOT, check=True)
    failed = [each for each in _PROGRAMS if not _passes(python, each)]
    for each in failed:
        sys.stdout.write(f"failed: python -m tests.faults.{each}\n")
    raise SystemExit(1 if failed else 0)


def _passes(python: str, program: str) -> bool:
    name, *options = program.split()
    sys.stdout.write(f"== {program}\n")
    sys.stdout.flush()
    began_s = time.monotonic()
    code = subprocess.run(
        [python, "-m", f"tests.faults.{name}", *options], cwd=ROOT, check=False
    ).returncode
    sys.stdout.write(f"== exit code {code} after {time.monotonic() - began_s:.0f} s\n")
    return code == 0


if __name__ == "__main__":
    main()
