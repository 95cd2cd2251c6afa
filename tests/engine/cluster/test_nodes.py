from __future__ import annotations

import pytest

from llmtrain.engine.cluster.nodes import require_nodes
from llmtrain.errors import UsageError


def test_only_numbers_of_machines_that_a_cluster_has_are_taken() -> None:
    for nodes in (1, 4096):
        require_nodes(nodes)
    for nodes in (-1, 0, 4097):
        with pytest.raises(UsageError, match=f"--nodes {nodes}: not from 1 to 4096"):
            require_nodes(nodes)
