"""Install llmtrain with one set of versions into .venv, and run the tests.

`newest`: what constraints.txt pins. `lowest`: the oldest version of everything that pyproject.toml
names, resolved by uv. `unpinned`: whatever is newest today, so that a breaking release is seen.
Runs on Linux, macOS and Windows with nothing but Python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# On Linux the usual index has builds of torch with gigabytes of CUDA; this one is PyTorch's own.
_CPU_BUILDS = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    """Install and test; the exit code is that of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", choices=["newest", "lowest", "unpinned"])
    parser.add_argument("tests", nargs="*", default=["tests"], help="for pytest")
    options = parser.parse_args()
    environment = ROOT / ".venv"
    venv.create(environment, with_pip=True)
    python = str(environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    pip = [python, "-m", "pip", "install", "--quiet"]
    if options.versions == "lowest":
        _run(*pip, "uv>=0.9")
        lowest = ["--resolution", "lowest-direct", "--torch-backend", "cpu"]
        _run(python, "-m", "uv", "pip", "install", "--python", python, *lowest, "-e", ".[test]")
    else:
        cpu_builds = ["--extra-index-url", _CPU_BUILDS] if sys.platform == "linux" else []
        pins = ["--constraint", "constraints.txt"] if options.versions == "newest" else []
        _run(*pip, *cpu_builds, *pins, "--editable", ".[test]")
    _run(python, "-m", "pytest", "-n", "2", *options.tests)


def _run(*command: str) -> None:
    sys.stdout.write("+ " + " ".join(command) + "\n")
    sys.stdout.flush()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
