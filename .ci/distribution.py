"""Build what a release publishes, and check it: a wheel and a source archive, each built twice.

Two builds have the same bytes, the wheel holds the profiles and `py.typed` and no tests, its
version is that of the newest heading of CHANGELOG.md or of no tag, and a new environment trains
with it. DIRECTORY gets both files, and what that environment consists of: a bill of materials and
the licences (see inventory.py).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Build, compare, check; the exit code is 1 with a sentence where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        tools = _environment(Path(work) / "tools", "build>=1.2")
        first, second = options.directory.resolve(), Path(work) / "again"
        for out in (first, second):
            subprocess.run([tools, "-m", "build", "--outdir", out, ROOT], check=True)
        _require_same(first, second)
        [wheel] = first.glob("llmtrain-*.whl")
        _require_whole(wheel)
        _require_tagged(wheel.name.split("-")[1])
        python = _require_training(wheel, Path(work))
        subprocess.run([sys.executable, ROOT / ".ci" / "inventory.py", python, first], check=True)
    for path in sorted(first.iterdir()):
        sys.stdout.write(f"{_sha256(path)}  {path.name}\n")


def _environment(directory: Path, *packages: str) -> str:
    """Return the Python of a new environment with these packages."""
    venv.create(directory, with_pip=True)
    python = str(directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    constraints = str(ROOT / "constraints.txt")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, *packages],
        check=True,
    )
    return python


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _require_same(first: Path, second: Path) -> None:
    for path in first.glob("llmtrain-*"):
        if _sha256(path) != _sha256(second / path.name):
            raise SystemExit(f"{path.name} has other bytes when it is built again")


def _require_whole(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = ("py.typed", "profiles/cpu-tiny.yaml", "docs/guides/getting_started.md")
    missing = {f"llmtrain/{name}" for name in wanted} - names
    tests = [name for name in names if name.startswith("tests/")]
    if missing or tests:
        raise SystemExit(f"{wheel.name}: without {sorted(missing)}, with {tests[:3]}")


def _require_tagged(version: str) -> None:
    """A release is built from its tag, and its changelog has a heading for it."""
    tag = os.environ.get("GITHUB_REF_NAME", "")
    if tag.startswith("v") and tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, and the version {version}")
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    if tag and not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-", changelog, re.MULTILINE):
        raise SystemExit(f"CHANGELOG.md has no heading for {version}")


def _require_training(wheel: Path, work: Path) -> str:
    """Train with the wheel in a new environment; return the Python of that."""
    python = _environment(work / "user", str(wheel))
    train = ["train", "--profile", "cpu-tiny", "--steps", "5", "--out", "run"]
    environment = {**os.environ, "LLMTRAIN_CACHE_DIR": str(work / "cache")}
    for command in (["--version"], train, ["eval", "run"]):
        subprocess.run([python, "-m", "llmtrain", *command], cwd=work, env=environment, check=True)
    return python


if __name__ == "__main__":
    main()
