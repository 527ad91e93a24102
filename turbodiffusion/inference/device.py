"""The device as it is now: what the memory plan and the choice of kernels read of it."""

import os
import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from turbodiffusion.errors import MachineError
from turbodiffusion.memory.plan import GIB, DeviceInfo


def device_info(device: torch.device | str, limit: float | None = None) -> DeviceInfo:
    """Read a device: free bytes leave out what other programs hold. limit: GiB of it that may be used."""
    device = torch.device(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total, host_free = _system_memory()
    free, name, capability, driver = host_free, "CPU", None, ""
    if device.type == "cuda":
        capability, driver = torch.cuda.get_device_capability(device), _driver()
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's own, unused
        name = torch.cuda.get_device_name(device)
    if limit is not None:
        if limit <= 0:
            raise MachineError("memory.limit_not_positive", value=f"{limit:g}")
        total, free = (min(size, int(limit * GIB)) for size in (total, free))
    return DeviceInfo(device.type, name, total, free, cores, host_free, capability, driver, versions(), limit)


@cache
def versions() -> dict[str, str]:
    """Return the versions of torch, cuda and triton; "none" for one that is missing."""
    return {"torch": torch.__version__, "cuda": torch.version.cuda or "none", "triton": _triton_version()}


def _triton_version() -> str:
    if find_spec("triton") is None:
        return "none"
    try:
        return version("triton")
    except PackageNotFoundError:  # PyTorch's own build has another name
        return "with PyTorch"


@cache
def _driver() -> str:
    """The kernel module's version, which PyTorch does not tell."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", path.read_text()) if path.exists() else None
    return found[0] if found else f"unknown ({platform.system()})"


_CGROUP_FILES = (  # versions 2 and 1: limit ("max" means none), bytes used, and the name of cached files among them
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def _system_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """(total, free) bytes for this process: the kernel's estimate, cut to a container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total  # macOS tells no more
    if (proc / "meminfo").exists():
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
        total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, used, stat, cached in _CGROUP_FILES:
        if (cgroup / limit).exists() and (text := (cgroup / limit).read_text().strip()).isdigit():
            stats = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
            in_use = int((cgroup / used).read_text()) - int(stats.get(cached, 0))
            total = min(total, int(text))
            free = min(free, max(total - in_use, 0))
    return total, free
