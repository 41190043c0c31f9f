# SPDX-License-Identifier: MIT
"""A worker process from its start to its end: it is set up, works, and stops in time.

A pool has the process run `prepare` and then `serve`.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from procbus.codec.script_globals import be_the_script
from procbus.core.worker import CurrentWorker
from procbus.pool.channel import Channel
from procbus.pool.child.ending import end_in_order, flush_at_exit
from procbus.pool.child.logging import Forward, forward_logging, print_by_line
from procbus.pool.child.loop import Tokens, Worker
from procbus.pool.child.no_terminal import refuse_terminal
from procbus.pool.child.outbox import Outlet
from procbus.pool.child.self import end_with_parent, take_long_turns
from procbus.pool.logbook import Logbook
from procbus.pool.memory.shared_file import Room
from procbus.pool.memory.worker_side import OWN_RESULT, WorkerMemory
from procbus.pool.script import WorkerSettings
from procbus.pool.stack import StackPage
from procbus.pool.wire import FLUSH_S

_worker: Worker | None = None
_forward: Forward
_receive: Callable[[], bytes | bytearray | None]


def prepare(
    pipe: Connection,
    logbook: Logbook,
    stack: StackPage,
    memory: tuple[Room, Room, float] | tuple[Room, Room, float, Room],
    tokens: Tokens,
    settings: WorkerSettings,
) -> None:
    """Set the process up. loky runs this once, before anything else."""
    # loky has no other way to hand objects from the initializer to the task.
    global _worker, _receive, _forward
    flush_at_exit()
    if settings.script is not None:  # see `pool/birth.py`
        gc.freeze()  # modules live for ever, so the collector need not visit them
        gc.enable()
    # Ctrl-C reaches the whole process group, but the parent alone decides what to do. Not SIG_IGN:
    # programs that a handler starts would inherit it, and be left behind.
    signal.signal(signal.SIGINT, lambda *_: None)
    if settings.keeps_on:
        signal.signal(signal.SIGTERM, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    end_with_parent(settings.parent_pid)
    if settings.environment:
        os.environ.update(settings.environment)
    if settings.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, settings.nice)
    take_long_turns()
    if settings.script is not None:
        settings.script.apply()
    channel = Channel(pipe, stay_awake=True)
    _forward = forward_logging(Outlet(channel.send, pipe.fileno()), settings.log_levels)
    print_by_line()
    refuse_terminal()
    _worker = Worker(
        _forward.report,
        logbook,
        WorkerMemory(*memory, least_result=OWN_RESULT if logbook.shares else 0),
        tokens,
        settings.number,
        settings.run,
        FLUSH_S if settings.flush_s is None else settings.flush_s,
        CurrentWorker(settings.place),
    )
    _worker.eager = settings.eager
    be_the_script()
    _receive = channel.receive
    if hasattr(os, "register_at_fork"):
        worker, forward = _worker, _forward

        def forked() -> None:
            worker.note_fork()
            forward.leave()
            channel.leave()

        os.register_at_fork(after_in_child=forked)
    stack.listen()


def serve(init: bytes) -> None:
    """Work until the parent says stop: the one long task of the executor. Later calls do nothing.

    Args:
        init: the user's set-up of each worker, pickled; empty for none.
    """
    global _worker
    if _worker is not None:
        if _worker.set_up(init):
            _worker.serve(_receive)
            _forward.tell_the_rest()
        _worker = None
        end_in_order()
        _forward.leave()  # the pipe has no reader any more
