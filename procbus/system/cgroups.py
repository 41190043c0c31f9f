# SPDX-License-Identifier: MIT
"""The Linux cgroups that this process is in, of both versions.

In each function `root` replaces "/", for tests. Paths are strings here, because pathlib takes time
to import in a script that is about to start workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from procbus.system.mounts import Mount, parse


class Cgroup(NamedTuple):
    """A cgroup that limits this process: its own one in a hierarchy, or one above it."""

    version: int
    directory: str
    own: bool


def find(controller: str, root: str | os.PathLike[str]) -> Iterator[Cgroup]:
    """Find the cgroups that may limit a resource, such as "memory" or "cpu"."""
    mounts = dict(_mounts(_read(os.path.join(root, "proc/self/mountinfo")), controller))
    for line in _read(os.path.join(root, "proc/self/cgroup")).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version = 2
        elif controller in controllers.split(","):
            version = 1
        else:
            continue
        if version not in mounts:
            continue
        top = os.path.join(root, mounts[version].point.lstrip("/"))
        # In a container the mount may show only a part of the hierarchy. The path then begins with
        # that part, or lies outside of it.
        below = _below(mounts[version].part, path)
        for length in range(len(below), -1, -1):
            directory = os.path.join(top, *below[:length])
            yield Cgroup(version, directory, own=length == len(below))


def _below(mounted: str, path: str) -> list[str]:
    """The names that lead from the mounted part to a cgroup; none if it lies outside."""
    part, names = _names(mounted), _names(path)
    below = names[len(part) :]
    return [] if names[: len(part)] != part or ".." in below else below


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _mounts(mountinfo: str, controller: str) -> Iterator[tuple[int, Mount]]:
    """The mounted hierarchies that have a controller, each with its version."""
    for mount in parse(mountinfo):
        if mount.kind == "cgroup2":
            yield 2, mount
        elif mount.kind == "cgroup" and controller in mount.options.split(","):
            yield 1, mount


def _read(file: str) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            return opened.read()
    except OSError:  # no such file here
        return ""
