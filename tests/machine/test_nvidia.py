"""What nvidia-smi prints is read as it is meant, and where there is nothing it is None."""

from __future__ import annotations

import pytest

from llmtrain.machine import nvidia
from llmtrain.machine.memory_readings import AcceleratorMemory
from llmtrain.machine.nvidia import parse_nvidia_smi, read_nvidia_gpus

MIB = 2**20


def test_sizes_are_mib_and_a_name_may_hold_commas() -> None:
    text = "0, 81559, 81050, NVIDIA H100 80GB HBM3\n7, 24564, 100, RTX, odd one\n"
    first, second = parse_nvidia_smi(text)
    assert first == AcceleratorMemory(
        "cuda", 0, "NVIDIA H100 80GB HBM3", 81559 * MIB, available_bytes=81050 * MIB
    )
    assert (second.index, second.name, second.percent) == (7, "RTX, odd one", 99.6)


def test_what_is_not_available_is_unknown() -> None:
    (gpu,) = parse_nvidia_smi("0, 1000, [N/A], Tegra\n")
    assert (gpu.available_bytes, gpu.used_bytes, gpu.percent) == (None, None, None)


@pytest.mark.parametrize("text", ["No devices were found\n", "0, [N/A], [N/A], Orin\n"])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_nvidia_smi(text)


def test_without_the_tool_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia.shutil, "which", lambda name: None)
    assert read_nvidia_gpus() is None
