"""Hostile files by the hundred thousand: does anything but our own errors come out of a reader?

    nice python -m tests.faults.fuzz                       # 100,000 inputs a reader
    python -m tests.faults.fuzz --reader tokenizer --inputs 5000
    python -m tests.faults.fuzz --reader tokenizer --show 1234 > tokenizer.model

Inputs are damaged valid files, the same for the same `--seed`. Each reader runs in a process of
its own, whose address space is limited to 1 GiB more than it begins with; one that dies, computes
for longer than a second or waits for longer than 30 on one input is noted, ended, and goes on
after it. Prints a line a reader and every failure; exit code 1 where there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from llmtrain.errors import LlmtrainError
from tests.faults.mutations import Reader, numbered_input
from tests.faults.traps import TRAPS

_LONGEST_COMPUTING_S = 1.0
_LONGEST_WAIT_S = 30.0
_START_S = 300.0
_LOOK_EVERY_S = 0.05
_MORE_BYTES = 1 << 30
_MOST_FAILURES = 20
_TOLD_TOGETHER = 1000
_AT_NONE = 2**64 - 1  # starting or ending, and at no input


@dataclass
class DropCount:
    """What came of the inputs to one reader."""

    inputs: int = 0
    rejected: int = 0
    accepted: int = 0
    worst_s: float = 0.0  # of computing, for one input
    grown_bytes: int = 0  # the peak over what the process began with
    failures: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        """One line of the table."""
        return (
            f"{name:<12}{self.inputs:>9}{self.rejected:>10}{self.accepted:>10}"
            f"{len(self.failures):>9}{self.worst_s * 1000:>10.0f} ms{self.grown_bytes >> 20:>8} MiB"
        )


def main(arguments: Sequence[str]) -> int:
    """All readers, or those that are named."""
    values = _parsed(arguments)
    if values.child is not None:
        _read_all(values.reader[0], values.seed, values.child, values.inputs, values.progress)
        return 0
    with tempfile.TemporaryDirectory(prefix="llmtrain-fuzz-") as scratch:
        names = values.reader or reader_names()
        if values.show is not None:
            reader = reader_named(names[0], Path(scratch))
            sys.stdout.buffer.write(numbered_input(reader, values.seed, values.show))
            return 0
        _say(
            f"{'reader':<12}{'inputs':>9}{'rejected':>10}{'accepted':>10}{'failures':>9}"
            f"{'worst':>13}{'memory':>12}"
        )
        failures = 0
        for name in names:
            tally = run_reader(name, values.seed, values.inputs, Path(scratch) / "progress")
            _say(tally.row(name))
            for failure in tally.failures:
                _say(f"  {name} {failure}")
            failures += len(tally.failures)
    return 1 if failures else 0


def reader_names() -> list[str]:
    """Every reader but the traps."""
    from tests.faults.readers import readers

    return list(readers(Path()))


def reader_named(name: str, place: Path) -> Reader:
    """A reader, or a trap; only the former takes seconds to import."""
    if name in TRAPS:
        return TRAPS[name]
    from tests.faults.readers import readers

    return readers(place)[name]()


def run_reader(name: str, seed: int, inputs: int, progress: Path) -> DropCount:
    """Every input was given to the reader, in as many processes as that takes."""
    tally, start = DropCount(), 0
    while start < inputs and len(tally.failures) < _MOST_FAILURES:
        with _child(name, seed, start, inputs, progress) as (process, done):
            ended_by = _watch(process, done)
            told = [DropCount(**json.loads(line)) for line in process.stdout or ()]
            number = _number(done)
        for part in told:
            _add(tally, part)
        if ended_by is None and process.returncode == 0:
            break
        how = ended_by or f"ended with exit code {process.returncode}"
        tally.failures.append(f"input {number}: {how}")
        tally.inputs += number + 1 - start - sum(part.inputs for part in told)
        start = number + 1
    return tally


def _add(tally: DropCount, told: DropCount) -> None:
    tally.inputs += told.inputs
    tally.rejected += told.rejected
    tally.accepted += told.accepted
    tally.worst_s = max(tally.worst_s, told.worst_s)
    tally.grown_bytes = max(tally.grown_bytes, told.grown_bytes)
    tally.failures += told.failures


@contextlib.contextmanager
def _child(
    name: str, seed: int, start: int, inputs: int, progress: Path
) -> Iterator[tuple[subprocess.Popen[str], mmap.mmap]]:
    """A process that reads inputs from `start` on, and the number that it is at."""
    progress.write_bytes(_AT_NONE.to_bytes(8, "little"))
    command = [sys.executable, "-m", "tests.faults.fuzz", "--reader", name, "--seed", str(seed)]
    command += ["--inputs", str(inputs), "--child", str(start), "--progress", str(progress)]
    with (
        progress.open("r+b") as file,
        mmap.mmap(file.fileno(), 8) as done,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            yield process, done
        finally:
            process.kill()


def _number(done: mmap.mmap) -> int:
    return int.from_bytes(done[:8], "little")


def _watch(process: subprocess.Popen[str], done: mmap.mmap) -> str | None:
    """Until the process ends by itself, or on one input for too long: then it says how."""
    watched = psutil.Process(process.pid)
    last, since_s, computed_s = -1, time.monotonic(), 0.0
    while process.poll() is None:
        time.sleep(_LOOK_EVERY_S)
        try:
            times = watched.cpu_times()
        except psutil.NoSuchProcess:
            continue
        number, now_s = _number(done), time.monotonic()
        if number != last:
            last, since_s, computed_s = number, now_s, times.user + times.system
            continue
        if number == _AT_NONE and now_s - since_s < _START_S:
            continue
        if times.user + times.system - computed_s > _LONGEST_COMPUTING_S:
            process.kill()
            process.wait()
            return f"computes for longer than {_LONGEST_COMPUTING_S:g} s"
        if now_s - since_s > _LONGEST_WAIT_S:
            process.kill()
            process.wait()
            return f"waits for longer than {_LONGEST_WAIT_S:g} s"
    return None


def _read_all(name: str, seed: int, start: int, stop: int, progress: Path) -> None:
    """In the child: each input in turn; what came of them is told in lines of JSON."""
    place = progress.with_name("place")  # the parent removes it, however this ends
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    with progress.open("r+b") as file, mmap.mmap(file.fileno(), 8) as done:
        reader = reader_named(name, place)
        _limit_memory()
        before_bytes, tally, failures = _peak_bytes(), DropCount(), 0
        for number in range(start, stop):
            data = numbered_input(reader, seed, number)
            done[:8] = number.to_bytes(8, "little")
            failures += _is_failure(reader, data, place, number, tally)
            if tally.inputs == _TOLD_TOGETHER or number == stop - 1 or failures == _MOST_FAILURES:
                tally.grown_bytes = _peak_bytes() - before_bytes
                _say(json.dumps(asdict(tally)))
                tally = DropCount()
            if failures == _MOST_FAILURES:
                break
        done[:8] = _AT_NONE.to_bytes(8, "little")


def _is_failure(reader: Reader, data: bytes, place: Path, number: int, tally: DropCount) -> bool:
    """One input is read and counted; whether something else came out than what may."""
    begun_s, failed = time.process_time(), False
    try:
        reader.read(data, place)
        tally.accepted += 1
    except LlmtrainError:
        tally.rejected += 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what this looks for
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {str(error)[:200]} at {where.filename}:{where.lineno}"
        tally.failures.append(f"input {number}: {what}")
        failed = True
    tally.worst_s = max(tally.worst_s, time.process_time() - begun_s)
    tally.inputs += 1
    return failed


def _limit_memory() -> None:
    """No more address space than 1 GiB over what is taken now, where the system can say so."""
    if sys.platform != "linux":
        return
    import resource

    limit_bytes = psutil.Process().memory_info().vms + _MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def _peak_bytes() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz")
    parser.add_argument("--inputs", type=int, default=100_000, help="so many for each reader")
    parser.add_argument("--reader", action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, help="write this input instead of reading it")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
