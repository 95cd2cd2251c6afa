"""Which build of torch this machine should have, where the installed one is for another."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.machine.facts import Facts

_CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
_CUDA_BUILDS = "https://download.pytorch.org/whl/cu128"


@dataclass(frozen=True, slots=True)
class Replacement:
    """A build of torch to install: why the present one is wrong, and the pip command."""

    reason: str
    command: str


def replacement_build(facts: Facts) -> Replacement | None:
    """Return what to install in place of the installed build; None where that is the right one."""
    release = facts.torch_version.partition("+")[0]
    install = "pip install --force-reinstall"
    if facts.unusable_gpu is not None:
        # The usual index has builds with CUDA for Linux alone.
        index = "" if facts.system == "Linux" else f"--index-url {_CUDA_BUILDS} "
        return Replacement(facts.unusable_gpu, f"{install} {index}torch=={release}")
    if facts.has_unused_cuda:
        return Replacement(
            f"torch {facts.torch_version} comes with gigabytes of CUDA libraries, and there is no "
            "NVIDIA driver",
            f"{install} --index-url {_CPU_BUILDS} torch=={release}",
        )
    return None
