"""A node that is lost and comes back: `python -m tests.faults.elastic`.

Three agents of torchrun on this machine stand for three nodes, of which the run needs two. One is
killed with its rank; the others go on from the last checkpoint; the lost one is started again, and
all three finish. Tokens have to be counted exactly once, and losses to be those of one process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.train.run_directory.directory import RunDirectory
from tests.faults.tiny import furnish

_TOKENS_PER_STEP = 768  # 24 windows, which two and three ranks share evenly
_POLL_EVERY_S = 0.5
# Agents of torch 2.13 otherwise remember the store of their first meeting, which one that comes
# later does not know: ranks would wait at two of them.
_MEET_ANEW = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
_SHOWN_CHARACTERS = 20_000  # of a log, where a promise was broken
_LOSS_TOLERANCE = 1e-2  # of sums in another order, over hundreds of steps


@dataclass(slots=True)
class Nodes:
    """The agents of torchrun by number; agent 0 has the store at which they meet."""

    out: Path
    steps: int
    every: int
    port: int = field(default_factory=lambda: _free_port())
    agents: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, node: int) -> None:
        """Start a node's agent, in a session of its own."""
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2:3"]
        agent += ["--nproc-per-node", "1", "--max-restarts", "6", "--rdzv-backend", "c10d"]
        agent += ["--rdzv-endpoint", f"127.0.0.1:{self.port}", "--rdzv-id", "elastic"]
        agent += [
            "--rdzv-conf",
            f"is_host={int(node == 0)},last_call_timeout=5,keep_alive_interval=1",
        ]
        agent += ["--local-addr", "127.0.0.1"]
        command = ["-m", "llmtrain", *training(self.out, self.steps), "--resume", "auto"]
        command += [
            "--set",
            f"checkpoint.every_steps={self.every}",
            "--set",
            "checkpoint.keep_last=3",
        ]
        with (self.out.parent / f"node{node}.log").open("ab") as log:
            self.agents[node] = subprocess.Popen(
                [*agent, *command],
                stdout=log,
                stderr=log,
                env=os.environ | _MEET_ANEW,
                start_new_session=True,
            )

    def kill(self, node: int) -> None:
        """Kill the agent and its rank, as a machine without power ends."""
        agent = self.agents.pop(node)
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(agent.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        for pid in (agent.pid, *map(int, children.stdout.split())):
            os.kill(pid, signal.SIGKILL)
        agent.wait()

    def close(self) -> None:
        """Kill what still runs."""
        for node in list(self.agents):
            if self.agents[node].poll() is None:
                self.kill(node)


def training(out: Path, steps: int) -> list[str]:
    """Return the command that trains; the same for one process and for ranks."""
    settings = (
        f"train.steps={steps}",
        f"train.tokens_per_step={_TOKENS_PER_STEP}",
        "eval.tokens=768",
        "device.collective_timeout=60s",
        "device.compile=false",
    )
    flags = [word for setting in settings for word in ("--set", setting)]
    return ["train", "-p", "tiny.yaml", "--out", str(out), *flags]


def lost_and_returned(directory: Path, steps: int, every: int, limit_s: float) -> dict[str, Any]:
    """Train through the loss and the return of a node; return what the run recorded."""
    nodes = Nodes(directory / "run", steps, every)
    end_s, found = time.monotonic() + limit_s, dict[str, Any]()
    try:
        for node in range(3):
            nodes.start(node)
        found["killed_at"] = _wait_for(nodes, 2 * every, end_s)
        nodes.kill(2)
        found["went_on_at"] = _wait_for(nodes, found["killed_at"] + 2 * every, end_s)
        nodes.start(2)
        found["codes"] = [
            nodes.agents[node].wait(max(1.0, end_s - time.monotonic())) for node in range(3)
        ]
    finally:
        nodes.close()
    return found | _recorded(nodes.out)


def _recorded(out: Path) -> dict[str, Any]:
    run = RunDirectory(out)
    lines = [line for line in run.read_metrics() if "loss" in line]
    return {
        "steps": [line["step"] for line in lines],
        "tokens": [line["tokens"] for line in lines],
        "losses": [line["loss"] for line in lines],
        "sessions": len(run.read_record()["sessions"]),
    }


def _wait_for(nodes: Nodes, step: int, end_s: float) -> int:
    """Wait until the run has logged `step`; return the last one that it has."""
    while time.monotonic() < end_s:
        metrics = nodes.out / "metrics.jsonl"
        if metrics.is_file():
            lines = metrics.read_text(encoding="utf-8").splitlines()
            logged = [json.loads(line)["step"] for line in lines if line.endswith("}")]
            if logged and logged[-1] >= step:
                return int(logged[-1])
        ended = [node for node, agent in nodes.agents.items() if agent.poll() is not None]
        if ended:
            raise SystemExit(f"node {ended[0]} ended: see {nodes.out.parent}/node{ended[0]}.log")
        time.sleep(_POLL_EVERY_S)
    raise SystemExit(f"step {step} was not reached in time")


def problems(found: dict[str, Any], alone: dict[str, Any], steps: int) -> list[str]:
    """Return which promises were broken."""
    broken = []
    if found["codes"] != [0, 0, 0]:
        broken.append(f"the agents ended with {found['codes']}")
    if found["steps"] != list(range(1, steps + 1)):
        broken.append("steps are missing, or there twice")
    if found["tokens"] != [_TOKENS_PER_STEP * step for step in found["steps"]]:
        broken.append("tokens were not counted once")
    pairs = zip(found["losses"], alone["losses"], strict=False)
    worst = max(abs(ours - theirs) for ours, theirs in pairs)
    if worst > _LOSS_TOLERANCE:
        broken.append(f"losses differ by {worst:.4f} from those of one process")
    if found["sessions"] < 3:
        broken.append("the node came back after the end: take more --steps")
    return broken


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """0 where the run ended as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--limit", type=float, default=900.0, metavar="SECONDS")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the agents, too
    with tempfile.TemporaryDirectory(prefix="llmtrain-elastic-") as directory:
        furnish(Path(directory))
        os.chdir(directory)
        out = Path(directory) / "alone"
        command = [sys.executable, "-m", "llmtrain", *training(out, options.steps)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        alone = _recorded(out)
        found = lost_and_returned(Path(directory), options.steps, options.every, options.limit)
        broken = problems(found, alone, options.steps)
        if broken:
            for log in sorted(Path(directory).glob("node*.log")):
                text = log.read_text(encoding="utf-8", errors="replace")
                sys.stdout.write(f"{log.name}\n{text[-_SHOWN_CHARACTERS:]}\n")
        os.chdir("/")
    shown = {name: found[name] for name in ("killed_at", "went_on_at", "sessions", "codes")}
    sys.stdout.write(f"{json.dumps(shown | {'steps': len(found['steps']), 'broken': broken})}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
