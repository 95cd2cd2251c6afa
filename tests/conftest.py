"""What holds for every test: no test sees the user's settings, cache or clock."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


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
