# SPDX-License-Identifier: MIT
"""Group commit: a waiting thread's records are on the disk afterwards, at a shared cost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from procbus.core.errors import JournalError
from procbus.journal.storage.group_sync import GroupSync
from tests.waits import eventually

BOUND_S = 60.0


class Disk:
    """An intake whose flush takes as long as the test wants."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.frames_written = 0
        self.on_disk = 0
        self.flushes = 0
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.held = False
        self.error: BaseException | None = None

    def write(self) -> int:
        with self.lock:
            self.frames_written += 1
            return self.frames_written

    def flush(self) -> None:
        upto = self.frames_written
        self.flushes += 1
        self.begun.release()
        if self.held:
            assert self.go_on.acquire(timeout=BOUND_S)
        if self.error is not None:
            raise self.error
        self.on_disk = upto


def sync_of(disk: Any) -> GroupSync:
    return GroupSync(disk, "run.db")


def in_threads(count: int, run: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_records_written_before_are_on_the_disk_after():
    disk = Disk()
    sync = sync_of(disk)
    for _ in range(5):
        number = disk.write()
        sync.wait()
        assert disk.on_disk >= number
    assert disk.flushes == 5


def test_flush_without_new_records_does_not_happen():
    disk = Disk()
    sync = sync_of(disk)
    disk.write()
    sync.wait()
    sync.wait()
    assert disk.flushes == 1


def test_many_threads_are_all_on_the_disk():
    disk = Disk()
    sync = sync_of(disk)
    wrong: list[int] = []

    def publish() -> None:
        for _ in range(200):
            number = disk.write()
            sync.wait()
            if disk.on_disk < number:
                wrong.append(number)

    for thread in in_threads(8, publish):
        thread.join(BOUND_S)
    assert wrong == []
    assert disk.on_disk == 1_600


def test_threads_that_come_during_a_flush_share_the_next():
    disk = Disk()
    disk.held = True
    sync = sync_of(disk)

    def publish() -> None:
        disk.write()
        sync.wait()

    first = in_threads(1, publish)
    assert disk.begun.acquire(timeout=BOUND_S)
    others = in_threads(5, publish)
    eventually(lambda: sync._waiting == 6)  # noqa: SLF001 - nothing tells when they wait
    disk.go_on.release()
    assert disk.begun.acquire(timeout=BOUND_S)
    disk.go_on.release()
    for thread in first + others:
        thread.join(BOUND_S)
    assert disk.flushes == 2
    assert disk.on_disk == 6


def test_failure_of_the_disk_reaches_the_thread_that_wrote_and_the_next_tries_again():
    disk = Disk()
    sync = sync_of(disk)
    disk.write()
    disk.error = OSError(5, "Input/output error")
    with pytest.raises(JournalError, match="the disk failed to keep it"):
        sync.wait()
    disk.error = None
    sync.wait()
    assert disk.on_disk == 1


def test_interrupt_leaves_no_thread_waiting():
    disk = Disk()
    sync = sync_of(disk)
    disk.write()
    disk.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sync.wait()
    disk.error = None
    (thread,) = in_threads(1, sync.wait)
    thread.join(BOUND_S)
    assert not thread.is_alive()
    assert disk.on_disk == 1
