"""The shell lines that start one machine's ranks, and how YAML holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmtrain.engine.cluster.job import PORT, Job
from llmtrain.profile.yaml_text import dump_document

LINES = "LINES-OF-SHELL"  # the place of the lines in a document


def start_ranks(job: Job, node_rank: str, address: str) -> list[str]:
    """Return lines of bash that run the ranks of a machine, and pass SIGTERM on to them.

    `node_rank` and `address` are shell expressions: this machine's number, and the first one's
    name. The exit code is the largest of the ranks'.
    """
    if job.nodes == 1:
        return [f"exec {job.rank_command()}"]
    local = job.ranks_per_node
    return [
        f"export MASTER_ADDR={address} MASTER_PORT={PORT}",
        f"export WORLD_SIZE={job.ranks} LOCAL_WORLD_SIZE={local}",
        "pids=()",
        """trap 'kill -TERM "${pids[@]}"' TERM""",
        f"for rank in $(seq 0 {local - 1}); do",
        f"  RANK=$(({node_rank} * {local} + rank)) LOCAL_RANK=$rank \\",
        f"    {job.rank_command()} &",
        '  pids+=("$!")',
        "done",
        "code=0",
        'for pid in "${pids[@]}"; do',
        '  wait "$pid"; ended=$?',
        "  # the trap ends a wait; the rank is still saving",
        '  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; ended=$?; done',
        '  if [ "$ended" -gt "$code" ]; then code=$ended; fi',
        "done",
        'exit "$code"',
    ]


def yaml_with_lines(document: Mapping[str, Any], lines: Sequence[str]) -> str:
    """Return a document as YAML, with the lines of a shell where it says `LINES`."""
    before, _, after = dump_document(document, "the job").partition(LINES)
    last = before.rpartition("\n")[2]
    indent = " " * (len(last) - len(last.lstrip()) + 2)
    block = "".join(f"{indent}{line}\n" for line in lines)
    return f"{before}|\n{block.rstrip()}{after}"
