"""Compile C++ operators for torch on the machine that runs them, once, into the cache.

<cache>/native/<name>-<key>.so     the key: sources, flags, compiler, torch version and processor
<cache>/locks/<name>-<key>.lock    held by the process that compiles

Nothing needs these operators: where they cannot be had, the reason says what to do about it, and
the caller computes in another way.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from filelock import FileLock

from llmtrain.choice import Choice
from llmtrain.files import json_key, sha256_file, sync_directory, sync_file
from llmtrain.machine.facts import Facts
from llmtrain.untrusted import read_bytes

Announce = Callable[[str], None]
_COMPILE_TIMEOUT_S = 600
_VERSION_TIMEOUT_S = 30
_MOST_COMPILERS = 4  # at once: each takes some 400 MiB
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fno-math-errno", "-fvisibility=hidden", "-w")
_OPERATORS_HEADER, _MOST_SOURCE_BYTES = b"<torch/library.h>", 1 << 20
_LIBRARIES = ("-ltorch_cpu", "-lc10")
_INSTALL_COMPILER = "install one (Debian: apt install g++; macOS: xcode-select --install)"


def vector_instructions() -> str:
    """Return the instruction set of torch's own kernels, as torch names it: AVX2, AVX512, …

    ATEN_CPU_CAPABILITY limits it below what the processor has.
    """
    return torch.backends.cpu.get_cpu_capability()


@dataclass(frozen=True, slots=True)
class NativeSource:
    """C++ files that define operators of torch in one namespace, by TORCH_LIBRARY.

    Those that include `torch/library.h` are compiled as one file, so that names in them must differ
    also where they are internal. `headers` are included by the files: they only enter the key.
    `flags` are added to those that every library is compiled with; one that names an instruction
    set must suit this processor.
    """

    name: str
    namespace: str  # torch.ops.<namespace>
    operators: tuple[str, ...]
    files: tuple[Path, ...]
    headers: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return a key of the files' contents and the flags."""
        files = [sha256_file(path) for path in (*self.files, *self.headers)]
        return json_key([files, [*_FLAGS, *self.flags]])

    def is_loaded(self) -> bool:
        """Return whether this process has the operators."""
        known = getattr(torch.ops, self.namespace)
        return all(hasattr(known, name) for name in self.operators)


def load_native(
    source: NativeSource,
    facts: Facts,
    cache: Path,
    announce: Announce | None = None,
    *,
    compiles: bool = True,
) -> Choice[bool]:
    """Make the operators of `source` available in this process, compiling them if need be.

    The reason says how they came about or, where the value is False, why they are missing and what
    to do about it. Compiling takes seconds to a minute; `announce` is told before. Without
    `compiles`, only what has been compiled before is available.
    """
    if source.is_loaded():  # of whatever build: a namespace can be registered only once
        return Choice(True, "compiled for this machine")
    built = build_native(source, facts, cache, announce, compiles=compiles)
    if built.value is None:
        return Choice(False, built.reason)
    try:
        torch.ops.load_library(str(built.value))  # type: ignore[no-untyped-call]
    except OSError as error:
        said = str(error.__cause__ or error).splitlines()[0]
        return Choice(False, f"the compiled library cannot be loaded: {said}; remove {built.value}")
    if not source.is_loaded():
        return Choice(False, f"{built.value} does not hold the operators; remove it")
    return Choice(True, built.reason)


def build_native(
    source: NativeSource,
    facts: Facts,
    cache: Path,
    announce: Announce | None = None,
    *,
    compiles: bool = True,
) -> Choice[Path | None]:
    """Return the compiled library of `source`, from the cache or compiled now; None: it failed."""
    if sys.platform == "win32":
        return Choice(None, "native kernels are not built on Windows")
    compiler = facts.cxx_compiler
    if compiler is None:
        return Choice(
            None, f"no C++ compiler was found: {_INSTALL_COMPILER}, or name it in the variable CXX"
        )
    try:
        key = f"{source.name}-{_key(source, facts, _version(compiler))}"
        target = cache / "native" / f"{key}.so"
        if target.exists():
            return Choice(target, "compiled for this machine")
        if not compiles:
            return Choice(None, "not compiled yet: a run does it when it starts")
        locks = cache / "locks"
        for directory in (target.parent, locks):
            directory.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{key}.lock"):
            if not target.exists():  # another process may have compiled it meanwhile
                if announce is not None:
                    announce(f"compiling {source.name}, once for this machine: up to a minute")
                _compile(compiler, source, target, min(_MOST_COMPILERS, facts.cpu.usable_cores))
    except CompilerError as error:
        how = f"repair it, {_INSTALL_COMPILER}, or name another in the variable CXX"
        return Choice(None, f"{compiler} failed: {error}; {how}")
    except OSError as error:
        how = "make it writable, or choose another place with LLMTRAIN_CACHE_DIR"
        return Choice(None, f"cannot write to {cache}: {error.strerror or error}; {how}")
    return Choice(target, "compiled for this machine")


class CompilerError(Exception):
    """The compiler failed; the message is its first line of error."""


def compile_command(compiler: str, source: NativeSource, *more: str) -> list[str]:
    """Return the command that compiles the files of `source`; `more` says into what."""
    root = Path(torch.__file__).parent
    apple = sys.platform == "darwin"
    return [
        compiler,
        *_FLAGS,
        # torch's parallel loops are templates; Apple's compiler has no OpenMP by itself
        *(("-undefined", "dynamic_lookup") if apple else ("-fopenmp",)),
        *source.flags,
        f"-I{root / 'include'}",
        *more,
        *map(str, source.files),
        f"-L{root / 'lib'}",
        *_LIBRARIES,
        f"-Wl,-rpath,{root / 'lib'}",
    ]


def _compile(compiler: str, source: NativeSource, target: Path, at_once: int) -> None:
    """Compile into `target`, which appears complete or not at all; so many files at once."""
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        files = _compiled_apart(source, Path(scratch, "operators_as_one.cpp"))
        objects = tuple(Path(scratch, f"{file.stem}.o") for file in files)

        def compile_file(file: Path, compiled: Path) -> None:
            one = replace(source, files=(file,))
            _run(compile_command(compiler, one, "-c", "-o", str(compiled)), _COMPILE_TIMEOUT_S)

        with ThreadPoolExecutor(at_once) as compilers:
            list(compilers.map(compile_file, files, objects))  # raises the first error
        library = Path(scratch, "library.so")
        linked = replace(source, files=objects)
        _run(compile_command(compiler, linked, "-shared", "-o", str(library)), _COMPILE_TIMEOUT_S)
        if not library.exists():
            raise CompilerError("it ended well, but wrote no library")
        sync_file(library)
        library.replace(target)
    sync_directory(target.parent)


def _compiled_apart(source: NativeSource, as_one: Path) -> tuple[Path, ...]:
    """Return the files to compile; `as_one`, written here, includes those that define operators.

    Most of the time of such a file is parsing torch's headers, which so is done once. It comes
    first, as it takes longest.
    """
    operators = [file for file in source.files if _OPERATORS_HEADER in _contents(file)]
    if len(operators) < 2:
        return source.files
    as_one.write_text("".join(f'#include "{file}"\n' for file in operators), "utf-8", newline="\n")
    return (as_one, *(file for file in source.files if file not in operators))


def _contents(file: Path) -> bytes:
    return read_bytes(file, _MOST_SOURCE_BYTES, follow_links=True)


def _version(compiler: str) -> str:
    return _run([compiler, "--version"], _VERSION_TIMEOUT_S)


def _run(command: list[str], timeout_s: float) -> str:
    """Return what the command prints. Raises CompilerError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise CompilerError(f"no answer within {timeout_s:.0f} s") from None
    except OSError as error:
        raise CompilerError(error.strerror or str(error)) from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        first = next((line for line in lines if "error" in line), lines[0] if lines else "")
        raise CompilerError(first or f"exit code {done.returncode}")
    return done.stdout


def _key(source: NativeSource, facts: Facts, compiler_version: str) -> str:
    """Return the key of this build among all that are cached."""
    return json_key(
        {
            "source": source.digest(),
            "compiler": compiler_version,
            "torch": [facts.torch_version, facts.torch_build, str(Path(torch.__file__).parent)],
            "processor": [facts.cpu.architecture, facts.cpu.model, *facts.cpu.isa],
        }
    )
