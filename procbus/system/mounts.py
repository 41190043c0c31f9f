# SPDX-License-Identifier: MIT
"""The file systems that are mounted for this process, as Linux lists them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class Mount(NamedTuple):
    """One mounted file system, see proc_pid_mountinfo(5)."""

    #: Path within the file system of the part that is mounted; "/" for all of it.
    part: str
    #: Directory where it is mounted.
    point: str
    #: Type of the file system, such as "ext4".
    kind: str
    #: Options of the file system itself, with commas between them.
    options: str


def parse(mountinfo: str) -> Iterator[Mount]:
    """Read the text of `/proc/self/mountinfo`, in its order. Odd lines are left out."""
    for line in mountinfo.splitlines():
        # The number of fields before the dash varies.
        before, dash, after = line.partition(" - ")
        fields, rest = before.split(), after.split(maxsplit=2)
        if dash and len(fields) >= 5 and rest:
            options = rest[2] if len(rest) > 2 else ""  # rest[1] is the source, such as a device
            yield Mount(_unescaped(fields[3]), _unescaped(fields[4]), rest[0], options)


def _unescaped(text: str) -> str:
    """Decode the octal numbers that stand for blanks in a path."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
