"""The conda recipe says what pyproject.toml says, and rattler-build reads it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.checkout import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPE = ROOT / ".ci" / "conda" / "recipe.yaml"
_OTHER_NAMES = {"torch": "pytorch"}  # of packages that conda-forge calls otherwise


@pytest.fixture
def recipe() -> dict[str, Any]:
    return dict(yaml.safe_load(RECIPE.read_text(encoding="utf-8")))


@pytest.fixture
def project() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text))


def as_conda(requirement: str) -> str:
    parsed = Requirement(requirement)
    assert not parsed.extras, requirement
    assert parsed.marker is None, requirement
    return f"{_OTHER_NAMES.get(parsed.name, parsed.name)} {parsed.specifier}"


def test_it_needs_what_the_package_needs(recipe: dict[str, Any], project: dict[str, Any]) -> None:
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert recipe["context"]["python_min"] == oldest
    wanted = [as_conda(each) for each in project["project"]["dependencies"]]
    assert recipe["requirements"]["run"] == ["python >=${{ python_min }}", *wanted]
    building = [as_conda(each) for each in project["build-system"]["requires"]]
    assert recipe["requirements"]["host"][2:] == building


def test_it_is_of_this_version_and_licence(recipe: dict[str, Any], project: dict[str, Any]) -> None:
    described = project["project"]
    assert recipe["context"]["version"] == described["version"]
    assert recipe["about"]["license"] == described["license"]
    entries = [f"{name} = {where}" for name, where in described["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == entries
    assert recipe["build"]["noarch"] == "python"
    assert (RECIPE.parent / recipe["source"]["path"]).resolve() == ROOT


def test_rattler_build_renders_it(recipe: dict[str, Any]) -> None:
    rattler_build = pytest.importorskip("rattler_build")
    read = rattler_build.Stage0Recipe.from_file(str(RECIPE))
    [variant] = read.render(rattler_build.VariantConfig())
    rendered = variant.recipe.to_dict()
    assert rendered["package"] == {"name": "llmtrain", "version": recipe["context"]["version"]}
    assert "python >=3.10" in rendered["requirements"]["run"]
    assert len(rendered["tests"]) == len(recipe["tests"])
