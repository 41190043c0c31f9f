# SPDX-License-Identifier: MIT
"""The files of a journal: where they may lie, and which other users could write them.

Loading a journal unpickles, and so runs, the contents of its files. So a journal is refused if
another user could have written one of them. It is also refused on a network file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from procbus.core.errors import JournalError
from procbus.system.files import check_ours
from procbus.system.mounts import parse

#: File systems with unreliable locks and mappings between machines.
NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.glusterfs", "fuse.rclone"}
    | {"fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"ocfs2", "orangefs", "smb2", "smb3", "smbfs"}
)

#: Suffixes of the files that SQLite and the intake put beside the database.
SUFFIXES = ("", "-wal", "-shm", "-journal", "-intake")
#: Files that SQLite would make, or read if they exist. In a shared directory procbus makes them
#: first, so that no other user can.
_OF_SQLITE = ("-wal", "-shm", "-journal")

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def place(path: str) -> str:
    """Check whether a journal may lie here, without touching anything.

    Returns:
        The path without symbolic links.

    Raises:
        JournalError: the journal may not lie here; the message says where it may lie.
    """
    real = os.path.realpath(path)
    refuse_network(real)
    if os.path.isdir(real):
        raise cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    try:
        check_directory(os.path.dirname(real))
    except OSError as error:
        raise cannot_write(path, error) from error
    return real


def prepare_files(real: str) -> None:
    """Make the file of a journal if it is missing. Only the owner of the lock may do this.

    Do not open and close the file again: closing it would end SQLite's locks on the file.

    Raises:
        JournalError: the file cannot be made, or other users may have written it.
    """
    check_files(real)
    try:
        # procbus makes the file, and not SQLite, so that no other user can ever read or write it,
        # not even in the first moment.
        _make(real)
        for suffix in _OF_SQLITE if is_shared(os.path.dirname(real)) else ():
            _make(real + suffix)
    except OSError as error:
        raise cannot_write(real, error) from error
    check_files(real)


def guard_rollback(real: str) -> None:
    """Place an empty rollback journal if other users could place one, which SQLite would apply.

    SQLite ignores an empty rollback journal, and removes it once SQLite has made its own.

    Raises:
        JournalError: another user has placed one.
    """
    if is_shared(os.path.dirname(real)):
        try:
            _make(real + "-journal")
        except OSError as error:
            raise cannot_write(real + "-journal", error) from error
        check_files(real)


def tidy(real: str) -> None:
    """Remove the files that `prepare_files` made only for safety."""
    if is_shared(os.path.dirname(real)):
        for suffix in _OF_SQLITE:
            with contextlib.suppress(OSError):
                status = os.lstat(real + suffix)
                if status.st_uid == os.geteuid() and not status.st_size:
                    os.unlink(real + suffix)


def _make(name: str) -> None:
    """Make a missing file. Refuse a file of another user, because that user may replace it later.

    The open file is checked, not the name: a moment later the name may refer to another file.
    """
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        check_ours(name, os.fstat(fd), JournalError)
    finally:
        os.close(fd)


def check_files(real: str) -> None:
    """Refuse a journal that other users may have written, because it holds pickles.

    Raises:
        JournalError: other users may have written it.
    """
    for suffix in SUFFIXES:
        try:
            status = os.lstat(real + suffix)
        except FileNotFoundError:
            continue
        check_ours(real + suffix, status, JournalError)
        if status.st_nlink > 1:
            raise JournalError(
                f"{real + suffix} has {status.st_nlink} names (hard links), and under each name a "
                "bus could have it: copy it to a file of its own, and remove this name"
            )


def check_directory(directory: str) -> None:
    """Refuse a directory in which other users could replace one of the journal's files.

    SQLite reads the files beside the database and trusts them. In a directory such as /tmp every
    user may make files, but remove only their own ("sticky"). There it is enough to make the files
    first.

    Raises:
        JournalError: other users could replace a file.
        OSError: the directory does not exist.
    """
    status = os.stat(directory)
    if not hasattr(os, "geteuid"):
        return  # Windows has no such mode bits: not checked there, and not tested
    if status.st_uid not in (os.geteuid(), 0):
        raise JournalError(
            f"{directory} belongs to another user (uid {status.st_uid}), who could replace a "
            "file of the journal, and loading theirs could run their code: put the "
            "journal in a directory of your own"
        )
    mode = status.st_mode
    if mode & _OTHERS and not mode & stat.S_ISVTX and not _is_private_group(status):
        raise JournalError(
            f"others may make and replace files in {directory} (mode {stat.S_IMODE(mode):04o}), "
            "and loading one of those could run their code: put the journal in a directory of your "
            f"own, or chmod go-w {directory}"
        )
    above = directory
    while (above := os.path.dirname(above)) != os.path.dirname(above):
        mode = os.stat(above).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise JournalError(
                f"everybody may replace files in {above} (mode {stat.S_IMODE(mode):04o}), the "
                "directory of the journal too, and loading their files could run their "
                f"code: chmod o-w {above}, or put the journal elsewhere"
            )


def is_shared(directory: str) -> bool:
    """Whether other users may make files in a directory."""
    status = os.stat(directory)
    return bool(status.st_mode & _OTHERS) and not _is_private_group(status)


def _is_private_group(status: os.stat_result) -> bool:
    """Whether only the group may write, and the group has a single user: the owner, or root.

    Many systems give each user a group of the same name, and make new files writable for that
    group.
    """
    if status.st_mode & stat.S_IWOTH:
        return False
    try:
        import grp
        import pwd

        group = grp.getgrgid(status.st_gid)
        if not status.st_gid:  # in containers with arbitrary users, the process has group 0
            return set(group.gr_mem) <= {"root"}
        user = pwd.getpwuid(os.geteuid())
    except (ImportError, KeyError):
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def cannot_write(path: str, error: OSError) -> JournalError:
    """Make the error for a file that cannot be created or written."""
    directory = os.path.dirname(os.path.realpath(path))
    if isinstance(error, FileNotFoundError):
        advice = f"make the directory {directory} first"
    elif isinstance(error, IsADirectoryError):
        advice = "it is a directory: name a file in it"
    elif error.errno == errno.ELOOP:
        advice = "it is a symbolic link: remove the link"
    elif error.errno == errno.EROFS:
        advice = "its file system is read-only: put the journal elsewhere"
    elif isinstance(error, PermissionError):
        advice = f"make it and {directory} writable for you, or put the journal elsewhere"
    else:
        advice = "make room on the disk, or put the journal elsewhere"
    return JournalError(f"the journal {path} cannot be written ({error.strerror}): {advice}")


def refuse_network(real: str, mountinfo: str | None = None) -> None:
    """Refuse a file on a network file system.

    Args:
        real: the path without symbolic links.
        mountinfo: text in the format of `/proc/self/mountinfo`; None reads that file. On a system
            without it, such as macOS, nothing is refused.

    Raises:
        JournalError: the file is on a network file system.
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(errors="replace")
        except OSError:
            return
    best, kind = "", ""
    for mount in parse(mountinfo):
        inside = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(best):  # of two on one point, the later covers it
            best, kind = mount.point, mount.kind
    if kind in NETWORK:
        raise JournalError(
            f"the journal {real} is on a network file system ({kind}, mounted at {best}), whose "
            "locks and mappings cannot be relied on: put it on a local disk"
        )


# Errors of a journal in words, with advice.

#: Threshold of free space below which a disk counts as full, in bytes.
_NEXT_TO_NOTHING = 1 << 20

_ADVICE = {
    "SQLITE_FULL": (
        "the disk is full: make room on it, and start again. Accepted events are not lost"
    ),
    "SQLITE_READONLY": "it cannot be written: make the file and its directory writable for you",
    "SQLITE_CANTOPEN": "it cannot be written: make the file and its directory writable for you",
    "SQLITE_CORRUPT": (
        "it is corrupt: take a copy that is sound; or save the readable part with the `.recover` "
        "of sqlite3, and begin a new journal"
    ),
    "SQLITE_NOTADB": "it is corrupt, or not a journal at all: give the journal a name of its own",
    "SQLITE_BUSY": "another program holds it: end that program, and start again",
    "SQLITE_IOERR": "the disk failed to read or write it: look at the system's log",
}


def trouble(path: str, error: Exception) -> JournalError:
    """Make a JournalError from an error of SQLite or another library.

    Args:
        path: path of the journal.
        error: the error.
    """
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith("SQLITE_IOERR") and _is_full(path):
        name = f"SQLITE_FULL, {name}"  # for a mapped file SQLite cannot tell this from a full disk
    advice = next((text for key, text in _ADVICE.items() if name.startswith(key)), "")
    if not advice:
        return JournalError(f"the journal {path} cannot be used: {type(error).__name__}: {error}")
    return JournalError(f"the journal {path}: {advice} ({name}: {error})")


def _is_full(path: str) -> bool:
    try:
        return shutil.disk_usage(os.path.dirname(path)).free < _NEXT_TO_NOTHING
    except OSError:
        return False
