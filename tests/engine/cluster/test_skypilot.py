from __future__ import annotations

import pytest
import yaml

from llmtrain.engine.cluster.skypilot import skypilot_script
from llmtrain.errors import UsageError
from tests.engine.cluster.conftest import MakeJob


def test_a_task_names_machines_gpus_and_shared_storage(make: MakeJob) -> None:
    task = yaml.safe_load(skypilot_script(make(), "H100", "s3://runs"))
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:8"
    assert task["resources"]["cpus"] == "64+"
    assert task["file_mounts"]["/runs"] == {"source": "s3://runs", "mode": "MOUNT"}
    assert "SKYPILOT_NODE_RANK * 8 + rank" in task["run"]


def test_a_gpu_has_to_be_named(make: MakeJob) -> None:
    with pytest.raises(UsageError, match="by name"):
        skypilot_script(make(), None, "s3://runs")
    text = skypilot_script(make("cpu:16c:64GiB", "cpu-small"), None, "s3://runs")
    assert "accelerators" not in text
