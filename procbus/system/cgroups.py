# SPDX-License-Identifier: MIT
"""The Linux cgroups that this process is in, of both versions.

In each function `root` replaces "/", for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from procbus.system.mounts import Mount, parse


class Cgroup(NamedTuple):
    """A cgroup that limits this process: its own one in a hierarchy, or one above it."""

    version: int
    directory: Path
    own: bool


def find(controller: str, root: Path) -> Iterator[Cgroup]:
    """Find the cgroups that may limit a resource, such as "memory" or "cpu"."""
    mounts = dict(_mounts(_read(root / "proc/self/mountinfo"), controller))
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version = 2
        elif controller in controllers.split(","):
            version = 1
        else:
            continue
        if version not in mounts:
            continue
        mounted = mounts[version].part
        top = root / mounts[version].point.lstrip("/")
        # In a container the mount may show only a part of the hierarchy. The path then begins with
        # that part, or lies outside of it.
        below = Path(path).relative_to(mounted) if Path(path).is_relative_to(mounted) else Path()
        directory = top if ".." in below.parts else top / below
        yield Cgroup(version, directory, own=True)
        while directory != top:
            directory = directory.parent
            yield Cgroup(version, directory, own=False)


def _mounts(mountinfo: str, controller: str) -> Iterator[tuple[int, Mount]]:
    """The mounted hierarchies that have a controller, each with its version."""
    for mount in parse(mountinfo):
        if mount.kind == "cgroup2":
            yield 2, mount
        elif mount.kind == "cgroup" and controller in mount.options.split(","):
            yield 1, mount


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # no such file here
        return ""
