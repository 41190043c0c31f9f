# SPDX-License-Identifier: MIT
"""The sockets of the buses of one user: files in a directory that only this user may enter.

A socket has the name `PID-N.sock`, with the number N of the bus in its process.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import tempfile
from typing import NamedTuple

#: Maximum length of the path of a socket, in bytes: a limit of the kernel, less a zero at the end.
MOST_PATH_BYTES = 107

_END = ".sock"
#: The credentials of the other end, as the kernel knows them: pid, uid, gid.
_PEER = struct.Struct("3i")


class UnsafePlace(OSError):
    """The directory for sockets cannot be used; the message says why."""


class BusSocket(NamedTuple):
    """The socket of one bus: process id, number of the bus in its process, path."""

    pid: int
    number: int
    path: str

    @property
    def name(self) -> str:
        """The name of the bus for people: the process id, and the number from the second on."""
        return str(self.pid) if self.number == 1 else f"{self.pid}-{self.number}"


def directories() -> list[str]:
    """The directories that may have sockets of this user, the preferred one first.

    A script that cron starts has no `XDG_RUNTIME_DIR`, though a terminal of the same user has one.
    """
    found = []
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        found.append(os.path.join(runtime, "procbus"))
    found.append(os.path.join(tempfile.gettempdir(), f"procbus-{os.geteuid()}"))
    return found


def make_directory(path: str) -> None:
    """Make a directory for sockets, unless it is there; check that it is this user's alone.

    Raises:
        UnsafePlace: the directory belongs to someone else, or others may enter it.
        OSError: the directory cannot be made.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        check_directory(path)


def check_directory(path: str) -> None:
    """Check that a directory for sockets is this user's alone.

    Raises:
        UnsafePlace: the directory belongs to someone else, or others may enter it.
        FileNotFoundError: there is no such directory.
    """
    found = os.lstat(path)  # a link counts as no directory: someone else may have made it
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafePlace(f"{path} is no directory: remove it, it is in the way")
    if found.st_uid != os.geteuid():
        raise UnsafePlace(
            f"{path} belongs to user {found.st_uid}, and you are user {os.geteuid()}: set "
            "XDG_RUNTIME_DIR, or TMPDIR, to a directory of your own"
        )
    if found.st_mode & 0o077:
        raise UnsafePlace(f"others may enter {path}: chmod 700 {path}")


def places() -> list[BusSocket]:
    """The sockets of this user, by process id; some may be left by processes that were killed.

    Raises:
        UnsafePlace: a directory belongs to someone else, or others may enter it.
    """
    found: list[BusSocket] = []
    for directory in directories():
        try:
            check_directory(directory)
            names = os.listdir(directory)
        except FileNotFoundError:
            continue
        for name in names:
            pid, _, number = name.removesuffix(_END).partition("-")
            if name.endswith(_END) and pid.isascii() and pid.isdigit() and number.isdigit():
                found.append(BusSocket(int(pid), int(number), os.path.join(directory, name)))
    return sorted(found)


def place_for(directory: str, pid: int, number: int) -> BusSocket:
    """The socket of one bus in a directory.

    Raises:
        UnsafePlace: its path is too long for a socket.
    """
    path = os.path.join(directory, f"{pid}-{number}{_END}")
    if len(os.fsencode(path)) > MOST_PATH_BYTES:
        raise UnsafePlace(
            f"{path} is longer than a socket's path may be ({MOST_PATH_BYTES} bytes): set TMPDIR "
            "to a shorter directory"
        )
    return BusSocket(pid, number, path)


def is_own(sock: socket.socket) -> bool:
    """Whether the other end of a connection belongs to the user of this process."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS (untested): the modes of files alone
        return True
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return bool(_PEER.unpack(peer)[1] == os.geteuid())
