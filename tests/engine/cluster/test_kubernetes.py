from __future__ import annotations

from typing import Any

import yaml

from llmtrain.engine.cluster.kubernetes import kubernetes_script
from tests.engine.cluster.conftest import MakeJob


def objects(make: MakeJob, **more: Any) -> dict[str, Any]:
    text = kubernetes_script(make(**more), "registry/llmtrain:1", "runs")
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def test_several_machines_are_pods_that_find_the_first_by_name(make: MakeJob) -> None:
    found = objects(make)
    assert set(found) == {"Service", "Job"}
    spec, pod = found["Job"]["spec"], found["Job"]["spec"]["template"]["spec"]
    assert (spec["completions"], spec["parallelism"]) == (2, 2)
    assert spec["completionMode"] == "Indexed"
    name = found["Job"]["metadata"]["name"]
    assert pod["subdomain"] == found["Service"]["metadata"]["name"] == name
    assert found["Service"]["spec"]["selector"] == {"job-name": name}
    command = pod["containers"][0]["command"][2]
    assert f"MASTER_ADDR={name}-0.{name}" in command
    assert "JOB_COMPLETION_INDEX * 8 + rank" in command


def test_a_pod_has_time_to_save_and_is_replaced_after_it_did(make: MakeJob) -> None:
    job = objects(make)["Job"]["spec"]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 600
    rules = job["podFailurePolicy"]["rules"]
    ignored = next(r["onExitCodes"]["values"] for r in rules if "onExitCodes" in r)
    assert ignored == [75]
    assert rules[-1]["action"] == "FailJob"


def test_it_asks_for_what_the_job_needs(make: MakeJob) -> None:
    container = objects(make)["Job"]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert container["resources"]["requests"]["cpu"] == "64"
    of_cpus = objects(make, spec="cpu:16c:64GiB", profile="cpu-small", nodes=1)
    assert set(of_cpus) == {"Job"}
    container = of_cpus["Job"]["spec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert container["command"][2].startswith("exec llmtrain train")
