"""How much memory there is, how much of it is free, and how much this process has: of the machine, and of a group.

Schedulers and containers put processes into groups with limits of their own, and end what goes beyond them.

Source: Linux kernel documentation, "The /proc Filesystem" (MemAvailable), "Control Group v2" (memory.max,
memory.stat) and "Memory Resource Controller" (memory.limit_in_bytes, of the first version).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_FILES = {
    "": ("memory.max", "memory.current", ("active_file", "inactive_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
}
"""Of a group of processes, by what /proc/self/cgroup calls the second and the first version: the files of its limit and
of its memory, and how its memory.stat calls the pages of files."""


class _Limit(NamedTuple):
    """What a group of processes may have, in bytes, and where it tells what it has."""

    most: float
    group: Path
    used: str
    pages: tuple[str, str]


def memory_bytes(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Bytes of memory that programs may have in all: of this machine, or of the groups that this process is in."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**40
    return min([whole, *(int(limit.most) for limit in _limits(proc, groups))])


def free_memory(proc: Path = _PROC, groups: Path = _GROUPS) -> float:
    """Bytes of memory that programs may still take: on this machine, and in the groups that this process is in."""
    lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    free = float(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    for most, group, used, pages in _limits(proc, groups):
        free = min(free, most - float(_told(group / used)) + _pages_of_files(group, pages))
    return max(0.0, free)


def resident_memory() -> float:
    """Bytes of memory that this process has."""
    pages = int((_PROC / "self" / "statm").read_text(encoding="ascii").split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _limits(proc: Path, groups: Path) -> Iterator[_Limit]:
    """The limits of the groups that this process is in, as far as they have one."""
    own = (proc / "self" / "cgroup").read_text(encoding="ascii") if (proc / "self" / "cgroup").is_file() else "0::/"
    for controllers, place in (line.split(":", 2)[1:] for line in own.splitlines()):
        if controllers not in _FILES:
            continue
        limit, used, pages = _FILES[controllers]
        # Every group above sets a limit, too.
        inner = groups / controllers / place.strip("/")
        for group in (inner, *inner.parents):
            if (group / used).is_file() and (most := _told(group / limit)) != "max":
                yield _Limit(float(most), group, used, pages)


def _told(file: Path) -> str:
    """What a file of a group says; "max" where there is none."""
    return file.read_text(encoding="ascii").strip() if file.is_file() else "max"


def _pages_of_files(group: Path, names: tuple[str, str]) -> float:
    """Bytes that a group holds of files that were read; they make room for whoever needs it."""
    if not (group / "memory.stat").is_file():
        return 0.0
    rows = (line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    return sum(float(size) for name, size in rows if name in names)
