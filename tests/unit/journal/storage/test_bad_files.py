# SPDX-License-Identifier: MIT
"""A journal on bad ground: a JournalError names the remedy, and nothing is lost."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, JournalError
from procbus.journal.journal import Journal
from procbus.journal.storage import files
from procbus.journal.storage.schema import APPLICATION_ID, VERSION
from tests.matrix import quick_first
from tests.parts import close_with_only
from tests.waits import eventually

BOUND_S = 60.0


def refusal(path: Path | str, **options: Any) -> str:
    """Open a bus that must be refused; give the message."""
    with pytest.raises(JournalError) as caught:
        EventBus([], journal=path, **options)
    return str(caught.value)


def filled(path: Path, count: int = 2_000) -> Path:
    """A sound journal with something in it."""
    with EventBus([], journal=path, keep="all") as bus:
        bus.subscribe(bytes, len, name="len")
        for number in range(count):
            bus.publish(b"%d" % number)
    return path


def test_missing_directory_is_refused(tmp_path: Path):
    assert "make the directory" in refusal(tmp_path / "no" / "run.db")


def test_directory_in_place_of_a_file_is_refused(tmp_path: Path):
    assert "it is a directory: name a file in it" in refusal(tmp_path)


def test_another_file_is_left_as_it_is(tmp_path: Path):
    other = tmp_path / "notes.txt"
    other.write_text("my notes " * 100)
    other.chmod(0o600)
    assert "is not a journal, but some other file" in refusal(other)
    assert other.read_text() == "my notes " * 100
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path):
    other = tmp_path / "shop.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE orders (id)")
    connection.close()
    other.chmod(0o600)
    before = other.read_bytes()
    assert "is a database of another program" in refusal(other)
    assert other.read_bytes() == before
    assert os.listdir(tmp_path) == ["shop.db"]


def test_journal_of_a_newer_version_is_refused(tmp_path: Path):
    path = filled(tmp_path / "run.db", 1)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    assert "written by a newer procbus" in refusal(path)


def test_header_of_a_journal_identifies_it(tmp_path: Path):
    path = filled(tmp_path / "run.db", 1)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
    connection.close()


def test_truncated_journal_is_refused(tmp_path: Path):
    path = filled(tmp_path / "run.db")
    os.truncate(path, path.stat().st_size // 2)
    assert "is truncated" in refusal(path)


def test_corrupt_journal_is_refused(tmp_path: Path):
    path = filled(tmp_path / "run.db")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * (size - 100))
    assert "it is corrupt" in refusal(path)


def left_by_a_dead_bus(directory: Path) -> Path:
    """A journal whose bus was killed: the event is in the intake alone."""
    path = directory / "run.db"
    script = """
        import os, sys
        from procbus import EventBus
        bus = EventBus([], journal=sys.argv[1])
        bus.subscribe("slow", lambda n: __import__("time").sleep(60), name="slow")
        bus.publish("slow", 1)
        os.kill(os.getpid(), 9)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], timeout=BOUND_S, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    return path


def test_truncated_intake_is_refused(tmp_path: Path):
    path = left_by_a_dead_bus(tmp_path)
    os.truncate(f"{path}-intake", 4096)
    assert "It holds the events accepted last" in refusal(path)


def test_file_that_is_no_intake_is_refused(tmp_path: Path):
    path = left_by_a_dead_bus(tmp_path)
    Path(f"{path}-intake").write_bytes(b"something else" * 100)
    assert "is not the intake of a journal" in refusal(path)


def test_a_dead_bus_leaves_a_journal_that_the_next_takes_over(tmp_path: Path):
    ran: list[int] = []
    with EventBus([], journal=left_by_a_dead_bus(tmp_path)) as bus:
        bus.subscribe("slow", ran.append, name="slow")
    assert ran == [1]
    assert os.listdir(tmp_path) == ["run.db"]


def test_a_live_bus_of_another_process_is_named_by_its_pid(tmp_path: Path):
    path = tmp_path / "run.db"
    script = """
        import sys
        from procbus import EventBus
        with EventBus([], journal=sys.argv[1]):
            print("ready", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert f"belongs to process {other.pid}" in refusal(path)
        other.communicate(timeout=BOUND_S)
    EventBus([], journal=path).close()


@pytest.mark.parametrize("suffix", ["", "-intake", "-wal"])
def test_file_that_others_may_write_is_refused(tmp_path: Path, suffix: str):
    path = left_by_a_dead_bus(tmp_path)
    os.chmod(f"{path}{suffix}", 0o620)
    message = refusal(path)
    assert "may be written by others" in message
    assert "chmod 600" in message


def test_all_files_are_private(tmp_path: Path):
    before = os.umask(0)
    try:
        with EventBus([], journal=tmp_path / "run.db") as bus:
            bus.subscribe(int, abs)
            bus.publish(1)
            names = sorted(os.listdir(tmp_path))
            modes = {oct((tmp_path / name).stat().st_mode & 0o777) for name in names}
    finally:
        os.umask(before)
    assert names == ["run.db", "run.db-intake", "run.db-shm", "run.db-wal"]
    assert modes == {"0o600"}


def test_a_link_in_place_of_the_intake_is_not_followed(tmp_path: Path):
    target = tmp_path / "mine"
    target.write_text("precious")
    (tmp_path / "run.db-intake").symlink_to(target)
    assert "cannot be written" in refusal(tmp_path / "run.db")
    assert target.read_text() == "precious"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anything, so such a test runs as another user."""
    if os.geteuid():
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_that_cannot_be_written(tmp_path: Path):
    tmp_path.chmod(0o555)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    with as_nobody():
        message = refusal(tmp_path / "run.db")
    tmp_path.chmod(0o755)
    assert "writable for you" in message


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:50 / /home rw - nfs4 server:/home rw
31 30 8:2 / /home/me/scratch\\040disk rw - xfs /dev/sdb rw
32 22 0:51 / /mnt/share rw master:1 shared:2 - cifs //server/share rw
"""


@pytest.mark.parametrize(
    ("path", "kind"), [("/home/me/run.db", "nfs4"), ("/mnt/share/deep/run.db", "cifs")]
)
def test_a_network_file_system_is_refused(path: str, kind: str):
    with pytest.raises(JournalError, match=rf"network file system .{kind}.*put it on a local disk"):
        files.refuse_network(path, MOUNTS)


@pytest.mark.parametrize(
    "path", ["/var/run.db", "/home/me/scratch disk/run.db", "/homework/run.db", "/mnt/run.db"]
)
def test_local_file_system_is_accepted(path: str):
    files.refuse_network(path, MOUNTS)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Have the kernel refuse to let any file grow beyond a size: as good as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_full_disk_for_the_intake_is_reported(tmp_path: Path):
    with largest_file(1 << 20):
        assert "make room on the disk" in refusal(tmp_path / "run.db")
    EventBus([], journal=tmp_path / "run.db").close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB: room for the intake, and for some of the database."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_full_disk_refuses_further_events_and_loses_none(
    small_disk: Path, caplog: pytest.LogCaptureFixture
):
    path = small_disk / "run.db"
    bus = EventBus([], journal=path, io_workers=1, max_pending=100_000)
    go_on = threading.Event()
    bus.subscribe(bytes, lambda _: go_on.wait(BOUND_S), name="hold")
    accepted, error = publish_until_refused(
        bus, lambda number: b"%d %s" % (number, os.urandom(1_000))
    )
    assert "the disk is full: make room on it" in str(error)
    assert accepted > 1_000
    assert "Nothing can be published until that is over" in caplog.text
    assert [r.levelno for r in caplog.records if "Nothing can be published" in r.message] == [
        logging.ERROR
    ]
    closing = close_with_only(1, bus)
    go_on.set()
    closing.join(BOUND_S)
    assert not closing.is_alive()

    subprocess.run(["mount", "-o", "remount,size=300m", str(small_disk)], check=True)
    numbers: list[int] = []
    with EventBus([], journal=path, io_workers=1) as again:
        again.subscribe(bytes, lambda e: numbers.append(int(e.split(b" ")[0])), name="hold")
    assert numbers == list(range(1, accepted)), "all but the one that was running"


def test_a_disk_with_room_again_makes_the_journal_work_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "procbus")
    ran: list[bytes] = []
    with EventBus([], journal=tmp_path / "run.db", keep="all") as bus:
        bus.subscribe(bytes, ran.append, name="note")
        with largest_file(20 << 20):
            accepted, error = publish_until_refused(bus, lambda _: os.urandom(100_000))
        assert "disk" in str(error)

        def works() -> bool:
            try:
                bus.publish(b"works again")
            except JournalError:
                return False
            return True

        eventually(works)
    assert accepted > 100
    assert len(ran) == accepted + 1
    assert ran[-1] == b"works again"
    assert "works again" in caplog.text


@pytest.mark.parametrize("suffix", quick_first(["", "-intake"]))
def test_a_journal_that_is_taken_away_from_under_the_bus_is_noticed(tmp_path: Path, suffix: str):
    ran: list[int] = []
    said: list[str] = []
    name = tmp_path / f"run.db{suffix}"

    def refused() -> bool:
        try:
            bus.publish(1)
        except JournalError as error:
            said.append(str(error))
            return True
        return False

    with EventBus([], journal=tmp_path / "run.db") as bus:
        bus.subscribe(int, ran.append, name="note")
        bus.publish(0)
        name.rename(tmp_path / "elsewhere")
        eventually(refused)
        assert "was moved or deleted while the bus has it: put it back" in said[0]
        (tmp_path / "elsewhere").rename(name)
        eventually(lambda: not refused())
    assert set(ran) == {0, 1}


def test_a_closed_journal_can_be_closed_again(tmp_path: Path):
    journal = Journal(str(tmp_path / "run.db"))
    journal.close()
    journal.close()


def publish_until_refused(bus: EventBus, event: Callable[[int], bytes]) -> tuple[int, JournalError]:
    """Publish until the journal fails; give how many were accepted before, and the error."""
    for number in range(90_000):
        try:
            bus.publish(event(number))
        except JournalError as error:
            return number, error
    pytest.fail("the disk never filled up")
