# SPDX-License-Identifier: MIT
"""SIGTERM: before a script ends, it finishes, or puts away, the work of its buses.

The signal handler runs in the main thread, between any two steps of that thread, which may hold any
lock. So the handler only notes the time, starts a thread for the rest, and raises SystemExit(143).
The script unwinds as at Ctrl-C, and its buses close on the way. A bus asks this module how long
closing may take.

Once the interpreter is ending, the signal handler raises nothing. An exception would only end the
exit hook that it hits, and later exit hooks would not run, such as the hook that closes the buses.
Instead the thread closes the buses, whatever exit hook the main thread is in.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from math import inf
from queue import SimpleQueue
from time import monotonic, sleep
from types import FrameType
from typing import Literal, Protocol

from procbus.core.log import log
from procbus.core.own_thread import OwnThread, run_in_thread
from procbus.system import exit_hooks

OnSigterm = Literal["finish", "put_away"] | None

#: Exit status as in shells for a program that a signal ended: 128 + the signal's number.
STATUS = 143
#: Maximum time that running handlers get with on_sigterm="put_away", in seconds, as at Ctrl-C.
PUT_AWAY_S = 1.0
#: Minimum time for the rest of the script once all buses are closed, in seconds.
LAST_S = 1.0
#: Interval between two looks for a second SIGTERM, in seconds.
SIGTERM_LOOK_S = 0.05


class Told(Protocol):
    """An object that SIGTERM ends in order: a bus."""

    on_sigterm: OnSigterm
    grace_s: float

    closing: bool

    def refuse(self) -> None:
        """Refuse further events. From any thread."""


#: The open buses that SIGTERM ends in order. Each operation on the dict is atomic.
_buses: dict[Told, None] = {}
#: Times of the signals so far.
_came_at: list[float] = []
#: Time by which everything has to end, in seconds of `time.monotonic()`.
_end_at = 0.0
#: Whether the signal came while the interpreter was ending. Python then keeps the exit status that
#: it already had.
_status_lost = False
_at_exit = False
#: Tasks for a thread that waits for the signal, on Pythons that start no thread while the
#: interpreter is ending. A None ends the thread. `put` may be called in a signal handler.
_tasks: SimpleQueue[Callable[[], object] | None] | None = None


def install(bus: Told) -> None:
    """Have SIGTERM end this bus in order, from now until `forget`, unless the user has a handler.

    Args:
        bus: one with `on_sigterm`.
    """
    global _at_exit, _status_lost
    if not _buses:
        _came_at.clear()  # the script went on after an earlier signal
        _status_lost = False
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not _on_sigterm:
        if threading.current_thread() is not threading.main_thread():
            log.warning(
                "on_sigterm=%r has no effect: this bus was made in another thread than the main "
                "one, and only that may handle signals. Make it there, or leave on_sigterm out",
                bus.on_sigterm,
            )
            return
        if handler is not signal.SIG_DFL:
            log.warning(
                "on_sigterm=%r has no effect: the script has a handler of its own for SIGTERM. "
                "Raise SystemExit(%d) in it, or call bus.close(timeout=...) outside of it",
                bus.on_sigterm,
                STATUS,
            )
            return
        signal.signal(signal.SIGTERM, _on_sigterm)
        if not _at_exit:
            _at_exit = True
            atexit.register(_give_status)
            exit_hooks.call_afterwards(end_in_time)
    _buses[bus] = None
    if _tasks is None and not exit_hooks.starts_threads_to_the_end():
        _await_tasks()


def forget(bus: Told) -> None:
    """Drop a bus, because it was closed."""
    global _tasks
    _buses.pop(bus, None)
    if not _buses and not _came_at:
        tasks, _tasks = _tasks, None
        if tasks is not None:
            tasks.put(None)
    restore()


def restore() -> None:
    """Restore the signal's default once no bus is open, if this is the main thread.

    Another thread cannot restore the default; the signal handler then acts like the default.
    """
    if _buses or _came_at or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def came() -> bool:
    """Whether the signal has come."""
    return bool(_came_at)


def finish_by(bus: Told) -> float:
    """Time from which the bus begins no delivery (`time.monotonic()`); infinite without SIGTERM."""
    if not _came_at or bus not in _buses:
        return inf
    if len(_came_at) > 1 or bus.on_sigterm == "put_away":
        return _came_at[0]
    return _came_at[0] + bus.grace_s


def stop_by(bus: Told) -> float:
    """Time at which the bus stops running handlers (`monotonic()`); infinite without SIGTERM."""
    by = finish_by(bus)
    return by + PUT_AWAY_S if bus.on_sigterm == "put_away" and len(_came_at) == 1 else by


def end_in_time() -> None:
    """End the interpreter within its time, even if threads are left: all buses are closed."""
    if _came_at:
        _run(_end)


def _await_tasks() -> None:
    global _tasks
    tasks: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def work() -> None:
        while (task := tasks.get()) is not None:
            task()

    OwnThread("procbus-sigterm", work).start()
    _tasks = tasks


def _run(task: Callable[[], object]) -> None:
    """Run a task in another thread, because the signal may have interrupted this one."""
    if (tasks := _tasks) is not None:
        tasks.put(task)
    else:
        run_in_thread("procbus-sigterm", task)


def _close() -> None:
    """Close the buses while the interpreter is ending, and end it within its time."""
    if not exit_hooks.ending:
        _close_buses()
    elif not exit_hooks.over:
        return  # the main thread is closing them, and then calls `end_in_time`
    _end()


def _close_buses() -> None:
    try:
        exit_hooks.close_open()
    except BaseException:  # noqa: BLE001 - the process has to end all the same
        log.exception("procbus itself failed to close its buses after SIGTERM")


def _end() -> None:
    not_before = monotonic() + LAST_S
    while (now := monotonic()) < not_before or (now < _end_at and len(_came_at) == 1):
        sleep(SIGTERM_LOOK_S)
    _exit()


def _give_status() -> None:
    if _status_lost:
        if not exit_hooks.over:  # a failed exit hook of another library has ended all of them
            _close_buses()
        logging.shutdown()  # the exit hook of logging comes after this one, and would not run
        _exit()
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # from now on it is too late to change the exit status


def _exit() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112 - it may be anything, and closed
            continue
    os._exit(STATUS)


def _on_sigterm(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - see `signal`
    buses = list(_buses)
    if not buses and not _came_at:
        # This is a forked child; or no bus is open, but `restore` ran in another thread, where it
        # could not restore the default.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        return
    global _end_at, _status_lost
    _came_at.append(monotonic())
    ends = _interpreter_ends(frame)
    if len(_came_at) == 1:
        _end_at = _came_at[0] + max(bus.grace_s for bus in buses)
        _run(lambda: _respond(buses, ends))
    if ends:
        _status_lost = True
        return
    if len(_came_at) == 2 and any(bus.closing for bus in buses):
        return  # the closing buses notice the second signal, in any thread
    exit_hooks.close_first()  # before exit hooks of other libraries, which may wait for ever
    raise SystemExit(STATUS)


def _interpreter_ends(frame: FrameType | None) -> bool:
    """Whether the script has ended, and the main thread runs exit hooks.

    The hook that closes the buses may still be to come, after the hooks of other libraries.
    """
    if exit_hooks.ending:
        return True
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return (
        frame is not None
        and frame.f_code.co_name == "_shutdown"
        and frame.f_globals is vars(threading)
    )


def _respond(buses: Sequence[Told], ends: bool) -> None:
    _tell(buses)
    if ends:
        _close()


def _tell(buses: Sequence[Told]) -> None:
    for bus in buses:
        bus.refuse()
    _tell_systemd()
    if any(bus.on_sigterm == "finish" for bus in buses):
        log.warning(
            "SIGTERM: pending deliveries have %.3g s to finish; a second SIGTERM ends them at once",
            _end_at - _came_at[0],
        )
    else:
        log.warning("SIGTERM: pending deliveries are put away")


def _tell_systemd() -> None:
    """Tell the service manager that this is an orderly end, if the manager asks to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    import socket  # only now: few scripts are services

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.setblocking(False)
            notify.sendto(b"STOPPING=1", address.replace("@", "\0", 1))
    except OSError as error:
        log.info("systemd could not be notified of the end: %s", error)


def _after_fork_in_child() -> None:
    global _tasks
    _tasks = None  # its thread does not exist here
    _buses.clear()
    _came_at.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
