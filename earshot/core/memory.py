"""Free memory, within a container's limit."""

from __future__ import annotations

import os
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def get_free(device: torch.device) -> int:
    """Free bytes on a device; on the CPU cached file pages count as free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_read_available(), _read_container_limit())


def _read_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read_container_limit() -> int | float:
    """Free bytes within the container's limit (cgroup v2, then v1), infinity without one."""
    for limit, used, stat, key in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            most, now = (int((CGROUP / name).read_text()) for name in (limit, used))
            cached = dict(line.split() for line in (CGROUP / stat).read_text().splitlines())
            return max(0, most - now + int(cached.get(key, 0)))
        except (OSError, ValueError):  # no such file; "max"
            continue
    return float("inf")
