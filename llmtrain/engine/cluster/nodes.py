"""How many machines a cluster may have."""

from __future__ import annotations

from llmtrain.errors import UsageError

_MOST_NODES = 4096


def require_nodes(nodes: int) -> None:
    """Raise UsageError for a number of machines that no cluster has."""
    if not 1 <= nodes <= _MOST_NODES:
        raise UsageError(f"--nodes {nodes}: not from 1 to {_MOST_NODES}", hint="--nodes 2")
