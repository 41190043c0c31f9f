# SPDX-License-Identifier: MIT
"""The ground that a journal stands on: its files, who may write them, and what disk they are on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from procbus.errors import JournalError
from procbus.ownership import check_ours

#: File systems whose locks and mappings cannot be relied on between machines.
NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.glusterfs", "fuse.rclone"}
    | {"fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"ocfs2", "orangefs", "smb2", "smb3", "smbfs"}
)

#: What SQLite and the intake put beside the database.
SUFFIXES = ("", "-wal", "-shm", "-intake")


def prepare(path: str) -> str:
    """Make sure that a journal can stand here; create its file where there is none.

    Returns:
        The path with no symbolic link in it.

    Raises:
        JournalError: it cannot; the message says what to do.
    """
    real = os.path.realpath(path)
    refuse_network(real)
    try:
        # Made by us and not by SQLite, so that nobody else may read or write it from the first.
        fd = os.open(real, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from error
    os.close(fd)
    check_files(real)
    return real


def check_files(real: str) -> None:
    """Refuse a journal that others may have written: it holds pickles.

    Raises:
        JournalError: they may.
    """
    for suffix in SUFFIXES:
        try:
            status = os.stat(real + suffix)
        except FileNotFoundError:
            continue
        check_ours(real + suffix, status, JournalError)


def cannot_write(path: str, error: OSError) -> JournalError:
    """Make the error for a file that cannot be made or written."""
    directory = os.path.dirname(os.path.realpath(path))
    if isinstance(error, FileNotFoundError):
        advice = f"make the directory {directory} first"
    elif isinstance(error, IsADirectoryError):
        advice = "it is a directory: name a file in it"
    elif isinstance(error, PermissionError):
        advice = f"make it and {directory} writable for you, or put the journal elsewhere"
    else:
        advice = "make room on the disk, or put the journal elsewhere"
    return JournalError(f"the journal {path} cannot be written ({error.strerror}): {advice}")


def refuse_network(real: str, mounts: Iterable[str] | None = None) -> None:
    """Refuse a file on a network file system.

    Args:
        real: the path, with no symbolic link in it.
        mounts: lines as of `/proc/self/mountinfo`; None for those. Where there is no such file, as
            on macOS, nothing is refused.

    Raises:
        JournalError: it is on one.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
        except OSError:
            return
    best, kind = "", ""
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = _unescaped(fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two on one point, the later covers the other
            best, kind = point, after.split()[0]
    if kind in NETWORK:
        raise JournalError(
            f"the journal {real} is on a network file system ({kind}, mounted at {best}), whose "
            "locks and mappings cannot be relied on: put it on a local disk"
        )


def _unescaped(point: str) -> str:
    """A mount point as it is: the kernel writes blanks in it as octal numbers."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
