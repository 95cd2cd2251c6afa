"""Every version that constraints.txt pins can be installed on the oldest Python there is."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator

from packaging.specifiers import SpecifierSet

from tests.checkout import ROOT

OLDEST = "3.10.0"


def pins() -> Iterator[tuple[str, str]]:
    """Yield name and version of each pin that holds on every Python."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if pin := re.fullmatch(r"([\w.-]+)==([\w.]+)", line.strip()):
            yield pin[1], pin[2]


def test_a_pin_without_a_condition_is_for_every_python() -> None:
    """Another would make the README's first command fail on that Python."""
    too_new = []
    for name, version in pins():
        try:
            package = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:  # of an extra
            continue
        needs = package.get("Requires-Python") or ""
        if package["Version"].partition("+")[0] == version and OLDEST not in SpecifierSet(needs):
            too_new.append(f'{name}=={version}; python_version >= "…" ({needs})')
    assert too_new == []
    assert len(list(pins())) > 30
