"""Do native kernels touch memory that is not theirs? `python -m tests.faults.native_kernels`.

Builds them with the sanitizers of addresses and of undefined behaviour into programs that run
random shapes. Exits 1 where a sanitizer or a program finds something. Needs g++ or clang++, and
a CPU that multiplies bf16, or for `--precision fp32` one with AVX2.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from llmtrain.choice import Precision
from llmtrain.machine.native import compile_command
from llmtrain.machine.probe import read_facts
from llmtrain.ops.native.library import kernel_source, unsuitable

_SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# libtorch allocates for the life of the process
_ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "5"}


def main() -> int:
    """Build and run the program; return its verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    options = parser.parse_args()
    facts = read_facts(tries_gpus=False)
    reason = unsuitable(facts, options.precision)
    if reason is not None or facts.cxx_compiler is None:
        sys.stdout.write(f"not possible here: {reason or 'no C++ compiler was found'}\n")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        program = build(facts.cxx_compiler, Path(directory), options.precision)
        command = [str(program), str(options.rounds), str(options.seed)]
        done = subprocess.run(command, env={**os.environ, **_ENVIRONMENT})
    return 1 if done.returncode else 0


def build(compiler: str, directory: Path, precision: Precision) -> Path:
    """Return the program, compiled into `directory`."""
    kernels = kernel_source(precision)
    suffix = "_fp32.cpp" if precision == "fp32" else ".cpp"
    main_file = Path(__file__).with_name(f"native_kernels{suffix}")
    files = tuple(path for path in kernels.files if not _is_of_tensors(path))
    includes = f"-I{kernels.files[0].parent}"
    source = replace(
        kernels, files=(*files, main_file), flags=(*kernels.flags, includes, *_SANITIZERS)
    )
    program = directory / "native_kernels"
    subprocess.run(compile_command(compiler, source, "-o", str(program)), check=True)
    return program


def _is_of_tensors(file: Path) -> bool:
    """Return True for operators, which call the kernels on tensors."""
    return "<torch/library.h>" in file.read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
