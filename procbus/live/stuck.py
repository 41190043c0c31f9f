# SPDX-License-Identifier: MIT
"""The stacks of a script that cannot answer, because C code holds its GIL. Linux alone.

`faulthandler` writes the stacks from a C signal handler. The script writes into nameless memory
that other processes of its user may open. Each worker process writes into the memory that its
parent reads. The signal is sent only to a process that catches it.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from contextlib import suppress
from typing import IO, Any

from procbus.core.locks import Lock, Tangled
from procbus.pool.logbook import anonymous_file
from procbus.pool.stack import SIGNAL, STACK_FILE, handler_stack
from procbus.system.procfs import descendants

#: A real-time signal that no other code uses; None if the system has none.
STUCK_SIGNAL: int | None = signal.SIGRTMAX - 4 if hasattr(signal, "SIGRTMAX") else None

_FILE = "procbus-threads"
#: Maximum wait for the stacks, and interval between two looks, in seconds.
_PATIENCE_S = 5.0
_LOOK_S = 0.02
#: Number of looks in a row without a change after which the stacks count as complete.
_STEADY = 10
#: Size above which the memory is emptied before the next stacks.
_MOST_BYTES = 1 << 20

#: Guards `_fd` and `_views`.
_lock = Lock()
#: The descriptor of the memory; -1 for none.
_fd = -1
#: The live views of this process.
_views: set[object] = set()


def show_stacks(view: object) -> None:
    """Be ready to write the stacks of this process, until `hide_stacks` of the same view."""
    global _fd
    with suppress(Tangled, OSError, RuntimeError), _lock:
        _views.add(view)
        if _fd >= 0 or STUCK_SIGNAL is None or not hasattr(os, "memfd_create"):
            return
        if signal.getsignal(STUCK_SIGNAL) is not signal.SIG_DFL:
            return  # the script uses it
        import fcntl  # not on Windows

        fd = anonymous_file(_FILE)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
            faulthandler.register(STUCK_SIGNAL, file=fd, all_threads=True)
        except BaseException:  # most likely Ctrl-C
            os.close(fd)
            raise
        _fd = fd


def hide_stacks(view: object) -> None:
    """Undo `show_stacks` of a view; idempotent."""
    global _fd
    with suppress(Tangled), _lock:
        _views.discard(view)
        if _views or _fd < 0:
            return
        assert STUCK_SIGNAL is not None
        faulthandler.unregister(STUCK_SIGNAL)
        fd, _fd = _fd, -1
        os.close(fd)


def _after_fork_in_child() -> None:
    global _lock, _fd  # the lock may be held by a thread that does not exist here
    _lock = Lock()
    _views.clear()
    fd, _fd = _fd, -1
    if fd >= 0:
        assert STUCK_SIGNAL is not None
        faulthandler.unregister(STUCK_SIGNAL)
        os.close(fd)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# In another process.


def stacks_by_signal(pid: int) -> dict[str, Any] | None:
    """Have a script and its worker processes write their stacks; None if the script cannot.

    Args:
        pid: process id of a script with a live view, of this user.

    Returns:
        The stacks in the form that the action "stacks" has.
    """
    script = _Dump(pid, STUCK_SIGNAL, _FILE)
    workers = [_Dump(each, SIGNAL, STACK_FILE) for each in descendants(pid)]
    asked = [dump for dump in (script, *workers) if dump.ask()]
    try:
        if script not in asked:
            return None
        deadline = time.monotonic() + _PATIENCE_S
        while sum(dump.grows() for dump in asked) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        threads = _threads(script.read())
        if not threads:
            return None
        return {
            "workers": [
                {"name": "of the script", "pid": each.pid, "stack": handler_stack(each.read())}
                for each in workers
                if each in asked
            ],
            "threads": threads,
        }
    finally:
        for dump in asked:
            dump.close()


class _Dump:
    """The stacks of one process. The process writes its stacks when it gets a signal.

    Args:
        pid: the process.
        number: the signal; None if the system has none.
        name: name of the memory that the process writes to.
    """

    def __init__(self, pid: int, number: int | None, name: str) -> None:
        self.pid = pid
        self._number = number
        self._name = name
        self._file: IO[bytes] | None = None
        #: Size before the signal, and at the last look.
        self._start = self._size = 0
        #: Number of looks in a row without a change, since the process began to write.
        self._steady = 0

    def ask(self) -> bool:
        """Send the signal; return False for a process that does not catch it."""
        if self._number is None or not _catches(self.pid, self._number):
            return False
        try:
            self._file = _open_memory(self.pid, self._name)
            if self._file is None:
                return False
            self._start = self._size = os.fstat(self._file.fileno()).st_size
            os.kill(self.pid, self._number)
        except OSError:  # the process has ended meanwhile
            self.close()
            return False
        return True

    def grows(self) -> bool:
        """Look; return whether more may come."""
        assert self._file is not None
        size = os.fstat(self._file.fileno()).st_size
        self._steady = self._steady + 1 if size == self._size > self._start else 0
        self._size = size
        return self._steady < _STEADY

    def read(self) -> str:
        """The stacks, as faulthandler writes them."""
        assert self._file is not None
        self._file.seek(self._start)
        return self._file.read(_MOST_BYTES).decode(errors="replace")

    def close(self) -> None:
        """Let go of the memory."""
        if self._file is not None:
            self._file.close()


def _open_memory(pid: int, name: str) -> IO[bytes] | None:
    folder = f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        with suppress(OSError):
            if os.readlink(f"{folder}/{number}").startswith(f"/memfd:{name} "):
                file = open(f"{folder}/{number}", "r+b", buffering=0)  # noqa: SIM115 - for `close`
                if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                    file.truncate(0)
                return file
    return None


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal. Without a handler the signal would end it."""
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _threads(dump: str) -> list[dict[str, Any]]:
    """The stack of each thread, in the form of the action "stacks"."""
    found = []
    for block in re.split(r"\n(?=\S)", dump.strip("\n")):
        title, _, stack = handler_stack(block).partition("\n")
        if stack:
            current = title.startswith("Current")
            name = re.sub(r"^(Current t|T)hread | \(most recent call last\):$", "", title)
            found.append({"name": name, "main": current, "stack": stack})
    return sorted(found, key=lambda each: not each["main"])
