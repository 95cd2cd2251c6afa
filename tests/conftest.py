"""What holds for every test: no test sees the user's settings, cache or clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-snapshots`: what is compared with a file is written there instead."""
    text = "write what is compared with a file, where it differs"
    parser.addoption("--write-snapshots", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """What torch 2.13's compiler says of its own imports is no error of ours."""
    config.addinivalue_line(
        "filterwarnings", "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
    )


@pytest.fixture(autouse=True, scope="session")
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No variable sets a profile value, and the cache is a directory of this session."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("LLMTRAIN_")]:
            patch.delenv(variable)
        patch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def snapshot(pytestconfig: pytest.Config) -> Callable[[Path, str], None]:
    """Compares a text with a file, or writes it there."""

    def compare(path: Path, text: str) -> None:
        if pytestconfig.getoption("--write-snapshots"):
            path.write_text(text, encoding="utf-8", newline="\n")
        rewrite = "python -m pytest … --write-snapshots rewrites it"
        assert path.read_text(encoding="utf-8") == text, rewrite

    return compare
