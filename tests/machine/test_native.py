"""Native operators are compiled once for a machine, and what prevents it is said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.machine.facts import Facts
from llmtrain.machine.native import NativeSource, build_native, load_native
from llmtrain.machine.probe import read_facts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="compilers here are shell scripts")

FakeCompiler = Callable[[str], Facts]
WRITE_OUTPUT = """
    echo called >> "$(dirname "$0")/calls"; sleep 0.2
    while [ "$1" != -o ]; do shift; done; echo library > "$2"
"""
OF_A_BUILD = 2  # calls of the compiler: for the one file, and to link


@pytest.fixture
def source(tmp_path: Path) -> NativeSource:
    code = tmp_path / "some.cpp"
    code.write_text("int some;\n")
    return NativeSource("some", "llmtrain_some", ("missing",), (code,))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def compiler(tmp_path: Path) -> FakeCompiler:
    """Return a function that makes a script the machine's compiler."""

    def make(script: str) -> Facts:
        path = tmp_path / "compiler"
        version = f'if [ "$1" = --version ]; then cat "{tmp_path}/version"; exit; fi'
        path.write_text(f"#!/bin/sh\n{version}\n{script}\n")
        path.chmod(0o755)
        (tmp_path / "version").write_text("1.0\n")
        return replace(read_facts(tries_gpus=False), cxx_compiler=str(path))

    return make


def calls(directory: Path) -> int:
    return len((directory / "calls").read_text().splitlines())


def test_it_is_compiled_once_by_processes_that_want_it_at_once(
    source: NativeSource, compiler: FakeCompiler, cache: Path, tmp_path: Path
) -> None:
    facts = compiler(WRITE_OUTPUT)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: build_native(source, facts, cache), range(3)))
    assert calls(tmp_path) == OF_A_BUILD
    path = found[0].value
    assert path is not None
    assert path.read_text() == "library\n"
    assert [each.value for each in found] == [path] * 3
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_files_of_operators_are_compiled_as_one(
    source: NativeSource, compiler: FakeCompiler, cache: Path, tmp_path: Path
) -> None:
    """Each would parse torch's headers of operators again, for most of its time."""
    operators = [tmp_path / name for name in ("first.cpp", "second.cpp")]
    for file in operators:
        file.write_text("#include <torch/library.h>\n")
    note = f'case "$each" in *.cpp) cat "$each" >> "{tmp_path}/read";; esac'
    facts = compiler(f'for each in "$@"; do {note}; done\n{WRITE_OUTPUT}')
    built = build_native(replace(source, files=(*operators, *source.files)), facts, cache)
    assert built.value is not None
    assert calls(tmp_path) == 3  # the two, the one without operators, and to link
    read = (tmp_path / "read").read_text()
    assert all(read.count(f'#include "{file}"') == 1 for file in operators)
    assert "<torch/library.h>" not in read


@pytest.mark.parametrize("changed", ["source", "flags", "torch", "processor", "compiler"])
def test_what_it_depends_on_makes_another(
    changed: str, source: NativeSource, compiler: FakeCompiler, cache: Path, tmp_path: Path
) -> None:
    facts = compiler(WRITE_OUTPUT)
    before = build_native(source, facts, cache).value
    if changed == "source":
        source.files[0].write_text("int other;\n")
    elif changed == "flags":
        source = replace(source, flags=("-mavx2",))
    elif changed == "torch":
        facts = replace(facts, torch_version="9.9")
    elif changed == "processor":
        facts = replace(facts, cpu=replace(facts.cpu, model="another"))
    else:
        (tmp_path / "version").write_text("2.0\n")
    assert build_native(source, facts, cache).value != before
    assert calls(tmp_path) == 2 * OF_A_BUILD


def test_without_a_compiler_the_reason_says_how_to_get_one(
    source: NativeSource, compiler: FakeCompiler, cache: Path
) -> None:
    found = load_native(source, replace(compiler(""), cxx_compiler=None), cache)
    assert found.value is False
    assert found.reason.startswith("no C++ compiler was found: install one")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo some.cpp:1:1: error: no header >&2; exit 1", "some.cpp:1:1: error: no header"),
        ("exit 3", "exit code 3"),
        ("exit 0", "it ended well, but wrote no library"),
    ],
)
def test_a_broken_compiler_is_quoted(
    script: str, said: str, source: NativeSource, compiler: FakeCompiler, cache: Path
) -> None:
    facts = compiler(script)
    found = load_native(source, facts, cache)
    assert found.value is False
    assert found.reason.startswith(f"{facts.cxx_compiler} failed: {said}; repair it")
    assert not list((cache / "native").iterdir())


def test_a_compiler_that_is_gone_is_reported(
    source: NativeSource, compiler: FakeCompiler, cache: Path
) -> None:
    found = build_native(source, replace(compiler(""), cxx_compiler="/no/such"), cache)
    assert found.reason.startswith("/no/such failed: No such file or directory")


def test_a_cache_that_cannot_be_written_is_reported(
    source: NativeSource, compiler: FakeCompiler, cache: Path
) -> None:
    cache.write_text("a file where the directory would be")
    found = build_native(source, compiler(WRITE_OUTPUT), cache)
    assert found.value is None
    assert found.reason.startswith(f"cannot write to {cache}: ")
    assert "LLMTRAIN_CACHE_DIR" in found.reason


def test_a_library_in_a_cache_that_cannot_be_written_is_used(
    source: NativeSource, compiler: FakeCompiler, cache: Path
) -> None:
    facts = compiler(WRITE_OUTPUT)
    path = build_native(source, facts, cache).value
    (cache / "locks").rename(cache / "gone")
    (cache / "locks").write_text("a file where the directory would be")
    assert build_native(source, facts, cache).value == path


def test_a_library_that_cannot_be_loaded_is_reported(
    source: NativeSource, compiler: FakeCompiler, cache: Path
) -> None:
    found = load_native(source, compiler(WRITE_OUTPUT), cache)
    assert found.value is False
    assert found.reason.startswith("the compiled library cannot be loaded: ")
    assert "remove " in found.reason
