# SPDX-License-Identifier: MIT
"""The Linux cgroups that this process is in, of both versions.

In each function `root` replaces "/", for tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


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
        mounted, point = mounts[version]
        top = root / point.lstrip("/")
        # In a container the mount may show only a part of the hierarchy. The path then begins with
        # that part, or lies outside of it.
        below = Path(path).relative_to(mounted) if Path(path).is_relative_to(mounted) else Path()
        directory = top if ".." in below.parts else top / below
        yield Cgroup(version, directory, own=True)
        while directory != top:
            directory = directory.parent
            yield Cgroup(version, directory, own=False)


def _mounts(mountinfo: str, controller: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """For each mounted version: the part of the hierarchy that is mounted, and its directory."""
    for line in mountinfo.splitlines():
        # See proc_pid_mountinfo(5): the number of fields before the dash varies.
        before, dash, after = line.partition(" - ")
        if not dash:
            continue
        part, point = (_unescape(text) for text in before.split()[3:5])
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2":
            yield 2, (part, point)
        elif kind == "cgroup" and controller in options.split(","):
            yield 1, (part, point)


def _unescape(text: str) -> str:
    """Decode the octal numbers that stand for blanks in a path."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # no such file here
        return ""
