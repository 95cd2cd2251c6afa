"""List what an installation consists of: python .ci/inventory.py PYTHON DIRECTORY

PYTHON is the interpreter of an environment that llmtrain is installed in. DIRECTORY gets
`llmtrain.cdx.json`, a bill of materials (CycloneDX), and `licences.md`, a table. The exit code is 1
where a package has no licence, or one that asks more of its users than llmtrain's does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_TOOL = "cyclonedx-bom>=7.5"
_INSTALLER = {"pip", "setuptools", "wheel"}  # of the environment; llmtrain needs none of them
# What says so in a package's metadata: it may be used, changed and passed on with its notice, by
# any program. (The MPL asks for the source of its own files, where those were changed.)
_PERMISSIVE = (
    *("apache", "bsd", "isc", "mit", "mpl", "mozilla", "psf", "python software", "unlicense"),
    *("zlib", "0bsd", "cc0", "public domain"),
)
# Runs in PYTHON: every installed distribution as a line of JSON.
_LISTING = """
import importlib.metadata, json
for each in importlib.metadata.distributions():
    words = each.metadata
    kinds = [k for k in words.get_all("Classifier", []) if k.startswith("License")]
    kinds = [k.rpartition(" :: ")[2] for k in kinds]
    text = words.get("License-Expression") or ", ".join(kinds) or words.get("License") or ""
    print(json.dumps({"name": words["Name"], "version": words["Version"], "licence": text}))
"""


def main() -> None:
    """Write both files; the exit code is 1 with a sentence where a licence is not permissive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", metavar="PYTHON")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    packages = installed(options.python)
    table = options.directory / "licences.md"
    table.write_text(licence_table(packages), encoding="utf-8", newline="\n")
    write_materials(options.python, options.directory / "llmtrain.cdx.json")
    if doubtful := not_permissive(packages):
        raise SystemExit("\n".join(doubtful))
    sys.stdout.write(f"{len(packages)} packages, all with a permissive licence\n")


def installed(python: str) -> list[dict[str, str]]:
    """Return name, version and licence of each package of an environment, by name."""
    answer = subprocess.run(
        [python, "-c", _LISTING], check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    packages = [json.loads(line) for line in answer.stdout.splitlines()]
    wanted = (each for each in packages if each["name"].lower() not in _INSTALLER)
    return sorted(wanted, key=lambda each: each["name"].lower())


def licence_table(packages: list[dict[str, str]]) -> str:
    """Return the packages as a table in Markdown."""
    rows = [
        f"| {each['name']} | {each['version']} | {_short(each['licence'])} |" for each in packages
    ]
    return "\n".join(["| package | version | licence |", "| --- | --- | --- |", *rows]) + "\n"


def not_permissive(packages: list[dict[str, str]]) -> list[str]:
    """Return a sentence for each package whose licence is unknown or is not a permissive one."""
    return [
        f"{each['name']} {each['version']}: {_short(each['licence']) or 'says no licence'}"
        for each in packages
        if not any(word in each["licence"].lower() for word in _PERMISSIVE)
    ]


def _short(licence: str) -> str:
    """Return the name of a licence; some packages give its whole text."""
    first = next((line for line in licence.splitlines() if line.strip()), "").strip()
    return re.sub(r"\s+", " ", first)[:80].replace("|", "/")


def write_materials(python: str, path: Path) -> None:
    """Write the bill of materials of an environment. Its bytes depend on the packages alone."""
    with tempfile.TemporaryDirectory() as work:
        venv.create(work, with_pip=True)
        tool = Path(work) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        subprocess.run([tool, "-m", "pip", "install", "--quiet", _TOOL], check=True)
        command = [str(tool), "-m", "cyclonedx_py", "environment", "--output-reproducible"]
        project = ["--pyproject", str(ROOT / "pyproject.toml")]
        subprocess.run([*command, *project, "--output-file", str(path), python], check=True)


if __name__ == "__main__":
    main()
