"""Isolation of every test from the user's settings, cache and ignored signals."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import settings

from llmtrain.choice import Precision
from llmtrain.machine.startup import let_threads_sleep
from tests.caches import share_kernels, share_measurements

# The duration of an example depends on the load of the machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--write-snapshots`."""
    text = "write snapshot files instead of comparing with them"
    parser.addoption("--write-snapshots", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Ignore what torch's compiler warns of and no code of ours can change.

    Threads wait as in a run: where they spin, the tests of another worker wait for the core.
    """
    let_threads_sleep()
    for each in (
        "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",  # its own imports
        "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning",
    ):
        config.addinivalue_line("filterwarnings", each)


def pytest_collection_finish() -> None:
    """Exempt the tests themselves from garbage collections, which each look at all objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove LLMTRAIN_* variables and use a cache directory of this session.

    Workers of one session share the native kernels, which take most of a minute to compile, and
    what was measured.
    """
    cache, base = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        share_kernels(cache, base.parent)
        share_measurements(cache, base.parent)
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("LLMTRAIN_")]:
            patch.delenv(variable)
        patch.setenv("LLMTRAIN_CACHE_DIR", str(cache))
        yield


# How exact a time is does not matter to a test: one round, of little.
_SHORT_TIMING: dict[str, dict[str, object]] = {
    "llmtrain.machine.matmul_timing": {"_BUDGET_S": 0.02, "_LEAST_ROUNDS": 1},
    "llmtrain.model.timing": {"_BUDGET_S": 0.0, "_LEAST_ROUNDS": 1, "_TOKENS": 256},
    "llmtrain.model.step_timing": {
        "_BUDGET_S": 0.0,
        "_LEAST_ROUNDS": 1,
        "_LONGEST_ROUND_S": 0.0,
        "ran_share": lambda *_: 1.0,  # what is measured beside another worker is not again
    },
}


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time briefly, by each module that is imported."""
    for name, values in _SHORT_TIMING.items():
        if (timing := sys.modules.get(name)) is not None:
            for variable, value in values.items():
                monkeypatch.setattr(timing, variable, value)


@pytest.fixture(autouse=True, scope="session")
def _default_signals_in_children() -> Iterator[None]:
    """Start children with default handlers also under nohup or as a background job.

    `exec` keeps ignored signals ignored, but resets handled ones to their default: a handler that
    does nothing protects this process as before, and is not inherited.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, _do_nothing)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass


@pytest.fixture(scope="session")
def native_kernels() -> None:
    """Compile the native kernels once for the session; skip where this machine has none."""
    _load_native("bf16")


@pytest.fixture(scope="session")
def native_fp32_kernels() -> None:
    """Compile the native kernels for fp32 likewise."""
    _load_native("fp32")


def _load_native(precision: Precision) -> None:
    from llmtrain.machine.probe import read_facts
    from llmtrain.ops.native.library import load_kernels

    loaded = load_kernels(read_facts(tries_gpus=False), precision=precision)
    if not loaded.value:
        pytest.skip(loaded.reason)


@pytest.fixture
def snapshot(pytestconfig: pytest.Config) -> Callable[[Path, str], None]:
    """Return a function that compares a text with a file, or writes the file."""

    def compare(path: Path, text: str) -> None:
        if pytestconfig.getoption("--write-snapshots"):
            path.write_text(text, encoding="utf-8", newline="\n")
        rewrite = f"{path} differs; python -m pytest … --write-snapshots updates it"
        assert path.read_text(encoding="utf-8") == text, rewrite

    return compare
