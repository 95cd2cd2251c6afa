"""Install llmtrain in every documented way, each in an empty home, and use it.

    python .ci/install_paths.py            # all ways
    python .ci/install_paths.py pipx uvx   # some

For each way a line says how long it took, how many bytes it put on the disk and, on Linux, how many
came over the network (those of other programs too), and which torch it brought. Fails where a way
does not end with a trained model, or brings CUDA to a machine without a driver. Where an index has
builds of torch for CPUs, name it as users do: PIP_EXTRA_INDEX_URL for pip and pipx,
UV_TORCH_BACKEND=cpu for uv. A folder of wheels: PIP_FIND_LINKS, UV_FIND_LINKS.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CONSTRAINTS = str(ROOT / "constraints.txt")
_BIN = "Scripts" if os.name == "nt" else "bin"
_TRAIN = ("train", "--profile", "cpu-tiny", "--steps", "3", "--out", "run")
_OF_THE_USER = ("VIRTUAL_ENV", "PYTHONPATH", "XDG_", "LLMTRAIN_", "PIPX_", "UV_TOOL", "UV_CACHE")
Environment = Mapping[str, str]


def main() -> None:
    """Try every way; the exit code is 1 where one failed."""
    ways: dict[str, Callable[[Path, Path, Environment], list[str]]] = {
        "pip": _pip,
        "editable": _editable,
        "pipx": _pipx,
        "uv tool": _uv_tool,
        "uvx": _uvx,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ways", nargs="*", metavar="WAY", help=", ".join(ways))
    options = parser.parse_args()
    if unknown := set(options.ways) - set(ways):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ways)}")
    with tempfile.TemporaryDirectory() as work:
        wheel = _wheel(Path(work))
        failed = [name for name in options.ways or ways if not _is_usable(name, ways[name], wheel)]
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


def _is_usable(
    name: str, install: Callable[[Path, Path, Environment], list[str]], wheel: Path
) -> bool:
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_OF_THE_USER)}
        environment = {
            **inherited,
            "HOME": place,
            "USERPROFILE": place,
            "PATH": os.pathsep.join([str(home / ".local" / "bin"), os.environ["PATH"]]),
        }
        (home / "empty").mkdir()
        began_s, before = time.monotonic(), _received_bytes()
        try:
            command = install(home, wheel, environment)
            installed_s, received = time.monotonic() - began_s, _received_bytes()
            size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
            for arguments in (("--version",), _TRAIN, ("eval", "run")):
                _run(*command, *arguments, cwd=home / "empty", env=environment)
            report = _run(*command, "device", "info", cwd=home / "empty", env=environment)
        except subprocess.CalledProcessError as error:
            sys.stdout.write(f"{name}: {' '.join(error.cmd)}\n{error.stdout}\n")
            return False
    torch = next(line.split(None, 1)[1] for line in report.splitlines() if line[:5] == "torch")
    total_s = time.monotonic() - began_s
    sys.stdout.write(
        f"{name}: installed in {installed_s:.0f} s, {(received - before) / 1e6:.0f} MB received, "
        f"{size / 1e6:.0f} MB on the disk, torch {torch}; "
        f"trained and evaluated after {total_s:.0f} s\n"
    )
    sys.stdout.flush()
    if "gigabytes of CUDA" in report:
        sys.stdout.write(f"{name}: {report}\n")
    return "gigabytes of CUDA" not in report


def _received_bytes() -> int:
    """Return the bytes that networks have received, the loopback apart; 0 if uncounted."""
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()[2:]
    counted = [line.split(":", 1) for line in lines]
    return sum(int(figures.split()[0]) for name, figures in counted if name.strip() != "lo")


def _run(*command: str, env: Environment, cwd: Path = ROOT) -> str:
    """Return what a command printed. Raises CalledProcessError."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=dict(env),
        check=True,
        text=True,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ).stdout


def _python(environment: Path) -> str:
    venv.create(environment, with_pip=True)
    return str(environment / _BIN / "python")


def _wheel(work: Path) -> Path:
    python = _python(work / "build")
    _run(python, "-m", "pip", "install", "--quiet", "build>=1.2", env=os.environ)
    _run(python, "-m", "build", "--wheel", "--outdir", str(work / "dist"), env=os.environ)
    [wheel] = (work / "dist").glob("*.whl")
    return wheel


def _pip(home: Path, wheel: Path, env: Environment) -> list[str]:
    python = _python(home / "venv")
    _run(python, "-m", "pip", "install", "--constraint", _CONSTRAINTS, str(wheel), env=env)
    return [str(home / "venv" / _BIN / "llmtrain")]


def _editable(home: Path, wheel: Path, env: Environment) -> list[str]:
    checkout = home / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "dist", "runs"))
    python = _python(home / "venv")
    install = [python, "-m", "pip", "install", "--constraint", _CONSTRAINTS]
    _run(*install, "--editable", ".", env=env, cwd=checkout)
    return [str(home / "venv" / _BIN / "llmtrain")]


def _pipx(home: Path, wheel: Path, env: Environment) -> list[str]:
    options = f"--constraint={_CONSTRAINTS}"
    pipx = _tool("pipx")
    _run(pipx, "install", f"--pip-args={options}", str(wheel), env=env)
    return [str(home / ".local" / "bin" / "llmtrain")]


def _uv_tool(home: Path, wheel: Path, env: Environment) -> list[str]:
    _run(_tool("uv"), "tool", "install", "--constraints", _CONSTRAINTS, str(wheel), env=env)
    return [str(home / ".local" / "bin" / "llmtrain")]


def _uvx(home: Path, wheel: Path, env: Environment) -> list[str]:
    command = [_tool("uvx"), "--constraints", _CONSTRAINTS, "--from", str(wheel), "llmtrain"]
    _run(*command, "--version", env=env)
    return command


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} is not installed: pip install {name.replace('uvx', 'uv')}")
    return path


if __name__ == "__main__":
    main()
