"""Many clients of one server: errors, waiting, fairness, and the server's memory.

Each client asks for one text after the other. Some leave in the middle of one, as people do; the
others count how long each text took. At the end nothing may run or wait on the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil

_WORDS = ("def ", "import os\n", "class A:\n    ", "for i in ", "return ", "# ", "x = [", '"""')
_SAMPLES = 5  # of the server's memory, evenly over the time


@dataclass(slots=True)
class Client:
    """What one client saw."""

    seconds: list[float] = field(default_factory=list)
    left: int = 0
    problems: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Print what all clients saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--tokens", type=int, default=32, help="of each text, at most")
    parser.add_argument("--leaving", type=float, default=0.1, help="share of texts left early")
    options = parser.parse_args()
    command = [sys.executable, "-m", "llmtrain", "serve", options.run, "--port", "0", "--json"]
    command += ["--queue", str(options.clients)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = _url(server)
            clients, memory_mib = asyncio.run(_load(url, server.pid, options))
            idle = asyncio.run(_metrics(url))
        finally:
            server.terminate()
        code = server.wait(60)
    _show(clients, memory_mib, idle, code, options.seconds)


def _url(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    text = ""
    while not text.rstrip().endswith("\n}"):
        line = server.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        text += line
    return str(json.loads(text)["url"])


async def _load(
    url: str, pid: int, options: argparse.Namespace
) -> tuple[list[Client], list[float]]:
    clients = [Client() for _ in range(options.clients)]
    end_s = time.monotonic() + options.seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        asking = [
            asyncio.create_task(_ask(http, client, random.Random(number), end_s, options))
            for number, client in enumerate(clients)
        ]
        memory_mib = []
        for _ in range(_SAMPLES):
            await asyncio.sleep(options.seconds / _SAMPLES)
            memory_mib.append(psutil.Process(pid).memory_info().rss / 2**20)
        await asyncio.gather(*asking)
    return clients, memory_mib


async def _ask(
    http: httpx.AsyncClient,
    client: Client,
    draw: random.Random,
    end_s: float,
    options: argparse.Namespace,
) -> None:
    while time.monotonic() < end_s:
        body = {
            "prompt": "".join(draw.choices(_WORDS, k=draw.randint(1, 8))),
            "max_tokens": options.tokens,
            "stream": True,
            "seed": draw.randrange(1000),
        }
        leaves = draw.random() < options.leaving
        started_s = time.monotonic()
        try:
            problem = await _read(http, body, leaves=leaves)
        except httpx.HTTPError as error:
            problem = type(error).__name__
        if problem:
            client.problems[problem] += 1
        elif leaves:
            client.left += 1
        else:
            client.seconds.append(time.monotonic() - started_s)


async def _read(http: httpx.AsyncClient, body: dict[str, object], *, leaves: bool) -> str | None:
    """Return what went wrong with one text; None: nothing."""
    async with http.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            return str(response.status_code)
        last = ""
        async for line in response.aiter_lines():
            if line:
                last = line
            if leaves and line:
                return None
    return None if last == "data: [DONE]" else "incomplete"


async def _metrics(url: str) -> dict[str, str]:
    """Return the server's metrics once it has noticed that clients left."""
    await asyncio.sleep(2)
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        text = (await http.get("/metrics")).text
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return dict(line.rsplit(" ", 1) for line in lines)


def _show(
    clients: list[Client],
    memory_mib: list[float],
    idle: dict[str, str],
    code: int,
    seconds: float,
) -> None:
    problems = sum((client.problems for client in clients), Counter[str]())
    texts = [each for client in clients for each in client.seconds]
    means = sorted(statistics.mean(client.seconds) for client in clients if client.seconds)
    starved = sum(not client.seconds for client in clients)
    tokens = float(idle["llmtrain_generated_tokens_total"])
    rows = {
        "clients": f"{len(clients)}, of which {starved} got no text",
        "texts": f"{len(texts)} complete, {sum(client.left for client in clients)} left early",
        "problems": ", ".join(f"{count} × {name}" for name, count in problems.items()) or "none",
        "tokens/s of all": f"{tokens / seconds:.0f}",
    }
    if means:
        median = statistics.median(means)
        rows["seconds a text, of a client's mean"] = (
            f"median {median:.2f}, slowest {means[-1]:.2f} ({means[-1] / median:.2f} ×)"
        )
    rows["server's resident MiB over the time"] = ", ".join(f"{each:.0f}" for each in memory_mib)
    running, waiting = idle["llmtrain_running"], idle["llmtrain_waiting"]
    rows["afterwards"] = f"{running} running, {waiting} waiting; exit code {code}"
    sys.stdout.write("| | |\n| --- | --- |\n")
    for name, value in rows.items():
        sys.stdout.write(f"| {name} | {value} |\n")


if __name__ == "__main__":
    main()
