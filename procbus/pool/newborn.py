# SPDX-License-Identifier: MIT
"""A worker process that is started first and gets its orders later.

Python starts in it, and imports the modules that every worker needs. Meanwhile this process imports
loky, and makes the pipe and the memory of that worker. `procbus/pool/child/birth.py` is its side.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import process
from multiprocessing.spawn import get_command_line
from typing import Any

from procbus.pool.launch import interrupts_blocked
from procbus.system.no_fork import no_fork

#: Its program, which ends with loky's own. It finds modules where the script finds them, and never
#: takes a file in the working directory for one. The collector is off while it loads, because
#: nothing of that is garbage; `prepare` switches it on.
PROGRAM = (
    "import sys; sys.path[:] = {path}; import gc; gc.disable(); "
    "from procbus.pool.child.birth import await_orders; import loky.process_executor; "
    "await_orders({channel}, {parent}); "
    "import runpy; runpy.run_module('loky.backend.popen_loky_posix', run_name='__main__')"
)

#: Maximum length of the module path on the command line, in characters; Linux takes 128 KiB there.
_LONGEST_PATH = 100_000


class Newborn:
    """A process that waits for its orders. It belongs to the thread that made it, and ends with it.

    Args:
        environment: environment variables added to this process's.
        nice: niceness of the process from its first moment; None for this process's. The worker
            sets it itself, but only once it can: until then its imports would hold up the workers
            that have work.

    Raises:
        OSError: the machine is full.
        RuntimeError: the interpreter ends.
    """

    def __init__(self, environment: dict[str, str], nice: int | None) -> None:
        #: Descriptors that are passed on to it.
        self._passed: list[int] = []
        #: Its orders, once loky has made them.
        self._orders = b""
        with no_fork:  # a child would hold these descriptors open, and so hide its death
            self._ours, theirs = socket.socketpair()
            with theirs:
                try:
                    #: A pipe that can be read once the process has ended.
                    self.sentinel, end = os.pipe()
                    weakref.finalize(self, os.close, self.sentinel)
                    try:
                        self.process = _launch(theirs.fileno(), end, environment)
                    finally:
                        os.close(end)
                except BaseException:
                    self._ours.close()
                    raise
        if nice is not None:
            with contextlib.suppress(OSError):  # it is dead
                os.setpriority(os.PRIO_PROCESS, self.process.pid, nice)

    def hand_on(self, fd: int) -> int:
        """Pass a descriptor on to it; return the index of the descriptor, for `Passed`."""
        self._passed.append(fd)
        return len(self._passed) - 1

    def order(self, orders: bytes) -> None:
        """Keep its orders until `deliver`."""
        self._orders = orders

    def deliver(self, prepare: Callable[[], object]) -> None:
        """Send it its orders once it is ready, and wait until it has taken them in, or is dead.

        Args:
            prepare: called in between: makes what only the orders name.
        """
        with self._ours:
            if not self._hear():
                return
            prepare()
            try:
                socket.send_fds(self._ours, [b"."], self._passed)
                self._ours.sendall(self._orders)
            except OSError:  # it is dead, and the sentinel shows that
                return
            self._hear()

    def _hear(self) -> bool:
        """Wait until it says that it is ready, or closes its end; return whether it is ready."""
        try:
            return bool(self._ours.recv(1))
        except OSError:
            return False

    def abandon(self) -> None:
        """End it, unless loky knows it. Idempotent."""
        self._ours.close()
        if not self._orders:
            self.process.kill()
            self.process.wait()


def _launch(channel: int, end: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    program = PROGRAM.format(path=ascii(_path()), channel=channel, parent=os.getpid())
    with interrupts_blocked():  # until it has set its own signal handlers
        return subprocess.Popen(  # noqa: S603 - all of it is ours
            [
                sys.executable,
                *interpreter_flags(),
                *("-c", program),
                *("--process-name", "procbus-worker"),
                *("--pipe", str(channel)),
            ],
            pass_fds=[channel, end],
            env={**os.environ, **environment},
            restore_signals=False,
        )


def interpreter_flags() -> list[str]:
    """Flags of this interpreter that a worker's should have: -O, -W, -X and others."""
    if getattr(sys, "frozen", False):
        return []
    # `multiprocessing` knows most of them, and offers them only in this public function.
    flags = get_command_line()[1:-3]
    given = {flag.partition("=")[0] for flag in flags}
    for name, value in sys._xoptions.items():  # noqa: SLF001 - documented so
        if name not in given:
            flags += ["-X", name if value is True else f"{name}={value}"]
    return flags


def module_path() -> list[Any]:
    """The script's `sys.path`, with the first working directory in place of the empty string."""
    return [place or getattr(process, "ORIGINAL_DIR", None) for place in sys.path]


def _path() -> list[str]:
    """The same, and the places of procbus and loky, in case the script has changed it since."""
    path = [place for place in module_path() if isinstance(place, str)]
    files = [getattr(sys.modules.get(name), "__file__", None) for name in ("procbus", "loky")]
    roots = [os.path.dirname(os.path.dirname(file)) for file in files if file is not None]
    path += [root for root in roots if root not in path]
    if len(ascii(path)) > _LONGEST_PATH:  # the worker gets all of it with its orders
        found = [find_spec(name) for name in ("loky", "cloudpickle", "psutil")]
        roots += [os.path.dirname(os.path.dirname(spec.origin or "")) for spec in found if spec]
        path = [place for place in path if place in roots or place.startswith(sys.base_prefix)]
    return path
