"""Limits are read from invented control-group trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.machine.cgroup import (
    CgroupLimits,
    GroupMemory,
    read_limited_groups,
    read_limits,
    read_memory_usage,
)

NOTHING = CgroupLimits(quota_cores=None, memory_limit_bytes=None)
V1_NO_LIMIT = "9223372036854771712\n"
GIB = 2**30


def grow(root: Path, files: dict[str, str]) -> Path:
    """`root` holds `files`; paths that do not start with proc/ are under /sys/fs/cgroup."""
    for name, text in files.items():
        path = root / (name if name.startswith("proc/") else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_no_control_groups_means_no_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == NOTHING
    assert read_memory_usage(tmp_path) is None


def test_v2_container_sees_its_own_group_at_the_mount_root(tmp_path: Path) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "cpu.max": "150000 100000\n",
            "memory.max": f"{8 * GIB}\n",
            "memory.current": f"{3 * GIB}\n",
        },
    )
    assert read_limits(root) == CgroupLimits(1.5, 8 * GIB)
    assert read_memory_usage(root) == 3 * GIB


def test_v2_max_is_no_limit(tmp_path: Path) -> None:
    root = grow(
        tmp_path,
        {"proc/self/cgroup": "0::/\n", "cpu.max": "max 100000\n", "memory.max": "max\n"},
    )
    assert read_limits(root) == NOTHING


def test_v2_the_smallest_limit_of_all_levels_counts(tmp_path: Path) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "0::/batch/job/step\n",
            "batch/cpu.max": "800000 100000\n",
            "batch/memory.max": f"{4 * GIB}\n",
            "batch/memory.current": f"{2 * GIB}\n",
            "batch/job/cpu.max": "200000 100000\n",
            "batch/job/memory.max": f"{16 * GIB}\n",
            "batch/job/step/cpu.max": "max 100000\n",
            "batch/job/step/memory.max": "max\n",
            "batch/job/step/memory.current": f"{GIB}\n",
            "other/cpu.max": "10000 100000\n",
            "other/memory.max": "1\n",
        },
    )
    assert read_limits(root) == CgroupLimits(2.0, 4 * GIB)
    assert read_memory_usage(root) == 2 * GIB  # of the group whose limit binds


def test_usage_without_a_limit_is_the_own_groups(tmp_path: Path) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice\n",
            "slice/memory.max": "max\n",
            "slice/memory.current": "4096\n",
            "memory.current": "8192\n",
        },
    )
    assert read_memory_usage(root) == 4096


@pytest.mark.parametrize("path", ["/docker/abc", "/../sibling"])
def test_a_path_that_is_not_visible_means_the_mount_root(tmp_path: Path, path: str) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{path}\n",
            "cpu.max": "100000 100000\n",
            "docker/cpu.max": "10000 100000\n",  # of a docker inside, not of the one outside
        },
    )
    assert read_limits(root).quota_cores == 1.0


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_v1(tmp_path: Path, mount: str) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/job\n",
            f"{mount}/cpu.cfs_quota_us": "-1\n",
            f"{mount}/cpu.cfs_period_us": "100000\n",
            f"{mount}/job/cpu.cfs_quota_us": "50000\n",
            f"{mount}/job/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": V1_NO_LIMIT,
            "memory/job/memory.limit_in_bytes": f"{2 * GIB}\n",
            "memory/job/memory.usage_in_bytes": f"{GIB}\n",
        },
    )
    assert read_limits(root) == CgroupLimits(0.5, 2 * GIB)
    assert read_memory_usage(root) == GIB


@pytest.mark.parametrize("largest", [V1_NO_LIMIT, "9223372036854710272\n"])  # 4 and 64 KiB pages
def test_v1_no_limit(tmp_path: Path, largest: str) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu:/\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": largest,
        },
    )
    assert read_limits(root) == NOTHING


def test_hybrid_takes_each_controller_from_where_it_is(tmp_path: Path) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n0::/job\n",
            "memory/job/memory.limit_in_bytes": f"{GIB}\n",
            "unified/job/cpu.max": "300000 100000\n",
        },
    )
    assert read_limits(root) == CgroupLimits(3.0, GIB)


@pytest.mark.parametrize(
    "cpu_max", ["", "abc\n", "1\n", "1 2 3\n", "100000 0\n", "-5 100000\n", "\xff\xfe", "9" * 5000]
)
def test_malformed_is_unknown(tmp_path: Path, cpu_max: str) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "nonsense\n\n::\n0::/\n",
            "cpu.max": cpu_max,
            "memory.max": "lots\n",
            "memory.current": "\n",
        },
    )
    assert read_limits(root) == NOTHING
    assert read_memory_usage(root) is None


def test_a_directory_in_place_of_a_file_is_unknown(tmp_path: Path) -> None:
    root = grow(tmp_path, {"proc/self/cgroup": "0::/\n"})
    (root / "sys/fs/cgroup/cpu.max").mkdir(parents=True)
    assert read_limits(root) == NOTHING


def test_v2_cache_and_swap_room_are_told_apart_from_use(tmp_path: Path) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "memory.max": f"{8 * GIB}\n",
            "memory.current": f"{7 * GIB}\n",
            "memory.stat": f"anon {3 * GIB}\nfile {3 * GIB}\ninactive_file {2 * GIB}\n"
            f"active_file {GIB}\nslab_reclaimable 4096\nslab_unreclaimable 8192\n",
            "memory.swap.max": f"{2 * GIB}\n",
            "memory.swap.current": f"{GIB}\n",
        },
    )
    group = root / "sys/fs/cgroup"
    assert read_limited_groups(root) == [GroupMemory(group, 8 * GIB, 4 * GIB - 4096, GIB)]
    (group / "memory.swap.max").write_text("max\n")
    assert read_limited_groups(root)[0].swap_bytes is None
    (group / "memory.swap.max").write_text("0\n")
    assert read_limited_groups(root)[0].swap_bytes == 0


def test_v1_sums_over_the_groups_below_count(tmp_path: Path) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n",
            "memory/memory.limit_in_bytes": f"{8 * GIB}\n",
            "memory/memory.usage_in_bytes": f"{7 * GIB}\n",
            "memory/memory.stat": "inactive_file 1\nactive_file 1\n"
            f"total_inactive_file {GIB}\ntotal_active_file {2 * GIB}\n",
            "memory/memory.memsw.limit_in_bytes": f"{11 * GIB}\n",
            "memory/memory.memsw.usage_in_bytes": f"{8 * GIB}\n",
        },
    )
    group = root / "sys/fs/cgroup/memory"
    assert read_limited_groups(root) == [GroupMemory(group, 8 * GIB, 4 * GIB, 2 * GIB)]
    (group / "memory.memsw.limit_in_bytes").write_text(V1_NO_LIMIT)
    assert read_limited_groups(root)[0].swap_bytes is None


def test_every_limited_group_above_is_told_and_no_other(tmp_path: Path) -> None:
    root = grow(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b/c\n",
            "a/memory.max": f"{8 * GIB}\n",
            "a/memory.current": f"{5 * GIB}\n",
            "a/b/memory.max": "max\n",
            "a/b/memory.current": f"{4 * GIB}\n",
            "a/b/c/memory.max": f"{2 * GIB}\n",
            "a/b/c/memory.current": f"{GIB}\n",
        },
    )
    found = read_limited_groups(root)
    assert [(group.limit_bytes, group.used_bytes) for group in found] == [
        (2 * GIB, GIB),
        (8 * GIB, 5 * GIB),
    ]


@pytest.mark.parametrize("stat", ["", "inactive_file\n", "inactive_file many\n", "a b c\n"])
def test_where_the_cache_is_not_told_all_of_it_is_use(stat: str, tmp_path: Path) -> None:
    files = {"memory.max": f"{GIB}\n", "memory.current": "4096\n", "memory.stat": stat}
    root = grow(tmp_path, {"proc/self/cgroup": "0::/\n", **files})
    assert read_limited_groups(root)[0].used_bytes == 4096


def test_more_cache_than_use_is_no_negative_use(tmp_path: Path) -> None:
    files = {"memory.max": f"{GIB}\n", "memory.current": "4096\n"}
    root = grow(
        tmp_path, {"proc/self/cgroup": "0::/\n", **files, "memory.stat": "active_file 8192\n"}
    )
    assert read_limited_groups(root)[0].used_bytes == 0
