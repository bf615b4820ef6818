"""What a measured number depends on besides the experiment: the machine, and versions of libraries."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def versions(*extras: str) -> dict[str, str]:
    """Returns the versions that a result depends on, and those of the extras that took part."""
    names = ("rlagents", "torch", "numpy", "gymnasium", "ale-py", *extras)
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def describe(device: torch.device) -> dict[str, Any]:
    """Returns the processor, the cores that this process may use, the GPU if it computes on one, threads."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch_threads": torch.get_num_threads(),
    }


def line(known: Mapping[str, Any]) -> str:
    """Returns what `describe` knows in one line."""
    parts = (known["gpu"], known["cpu"], f"cores: {known['cores']}", known["system"])
    return ", ".join([*filter(None, parts), f"PyTorch threads: {known['torch_threads']}"])


def memory() -> int:
    """Returns the bytes of memory that the machine has, or a terabyte where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 10**12


def available(device: torch.device | None = None) -> int:
    """Returns the bytes of memory that this process can still get: a GPU's, the system's, a container's."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    free = memory()
    if known.is_file():
        rows = (text.split() for text in known.read_text("utf-8").splitlines())
        free = next((int(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:"), free)
    try:  # cgroup v2; what the page cache holds can be had
        limit, used = (int((group / f"memory.{name}").read_text("utf-8")) for name in ("max", "current"))
        stat = dict(row.split() for row in (group / "memory.stat").read_text("utf-8").splitlines())
        return min(free, limit - used + int(stat["file"]))
    except (OSError, ValueError, KeyError):
        return free


def resident(device: torch.device) -> int | None:
    """Returns the bytes of this process in memory, or of its tensors on a GPU; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    file = Path("/proc/self/statm")
    return int(file.read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.is_file() else None


def forget_peak() -> None:
    """Lets `peak` start anew, where the system can do that: Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8")


def peak() -> int | None:
    """Returns the most bytes that this process had in memory at once; None where nobody says."""
    file = Path("/proc/self/status")
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return next((int(text.split()[1]) * 1024 for text in lines if text.startswith("VmHWM:")), None)


def _cpu() -> str:
    """Returns the name that the processor gives itself, where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8", errors="replace").splitlines() if file.is_file() else []
    named = (text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
