# SPDX-License-Identifier: MIT
"""The lock of a journal: it holds whatever the script does to the files, and ends with the bus."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from procbus import EventBus, JournalError
from procbus.journal.storage import files
from procbus.journal.storage.lock import JournalLock
from tests.journal_scripts import BOUND_S, killed, running, status

COPY = """
import glob, shutil
for number in range(20): bus.publish(number)
before = bus._parts.journal._journal.queries.meta
while not before("generation", 0): threading.Event().wait(0.01)
for name in glob.glob(sys.argv[1] + "*"):
    if not name.endswith("-copy"):
        shutil.copy(name, name + "-copy")
print("ready", flush=True)
sys.stdin.readline()
for number in range(20, 40): bus.publish(number)
print("published", flush=True)
sys.stdin.readline()
"""


def test_a_script_that_copies_its_journal_keeps_it_and_loses_nothing(tmp_path: Path):
    path = tmp_path / "run.db"
    with running(path, COPY) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        with pytest.raises(JournalError, match=f"belongs to process {script.pid}"):
            EventBus([], journal=path)
        # A visit of each kind: none removes files that the bus writes to.
        assert json.loads(status(path, "status", "--json").stdout)["owner"] == script.pid
        assert status(path, "retry", "--all").returncode == 0
        assert status(path, "purge").returncode == 0
        assert os.path.exists(f"{path}-wal")
        script.stdin.write("\n")
        script.stdin.flush()
        assert script.stdout.readline() == "published\n"
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe(int, ran.append, name="hold")
    assert sorted(ran) == list(range(40))
    assert bus.resume_summary is not None
    assert bus.resume_summary.lost == ()


def test_two_buses_of_one_process_do_not_have_one_journal(tmp_path: Path):
    path = tmp_path / "run.db"
    with EventBus([], journal=path) as first:
        with pytest.raises(JournalError, match="another bus in this process"):
            EventBus([], journal=path)
        first.subscribe(int, abs, name="abs")
        assert first.publish(-1).result() == 1
    EventBus([], journal=path).close()


def test_of_many_threads_that_open_one_journal_one_gets_it(tmp_path: Path):
    opened: list[EventBus] = []
    refused: list[str] = []
    begin = threading.Barrier(6)

    def open_it() -> None:
        begin.wait(BOUND_S)
        try:
            opened.append(EventBus([], journal=tmp_path / "run.db"))
        except JournalError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert len(opened) == 1
    assert len(refused) == 5
    assert all("another bus in this process" in each for each in refused)
    opened[0].close()


def test_a_child_that_was_forked_does_not_hold_the_lock_of_its_dead_parent(tmp_path: Path):
    path = killed(
        tmp_path / "run.db",
        """
        bus.publish(1)
        child = os.fork()
        if not child:
            os.close(1); os.close(2)
            while not os.path.exists(sys.argv[1] + ".end"):
                threading.Event().wait(0.02)
            os._exit(0)
        with open(sys.argv[1] + ".child", "w") as file:
            file.write(str(child))
        """,
    )
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe(int, ran.append, name="hold")
    assert ran == [1]
    child = psutil.Process(int((tmp_path / "run.db.child").read_text()))
    (tmp_path / "run.db.end").touch()
    child.wait(BOUND_S)


def test_a_forked_child_cannot_open_the_journal_of_its_parent(tmp_path: Path):
    path = tmp_path / "run.db"
    with EventBus([], journal=path) as bus:
        bus.subscribe(int, abs, name="abs")
        bus.publish(1).result()
        child = os.fork()
        if not child:
            code = 1
            try:
                EventBus([], journal=path)
            except JournalError as error:
                code = 0 if f"belongs to process {os.getppid()}" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert bus.publish(-2).result() == 2
        with pytest.raises(JournalError, match="another bus in this process"):
            EventBus([], journal=path)


def test_a_lock_is_free_once_it_was_released(tmp_path: Path):
    path = str(tmp_path / "run.db")
    first = JournalLock(path)
    assert first.fresh
    first.release(remove=True)
    first.release(remove=True)
    assert os.listdir(tmp_path) == []
    JournalLock(path).release(remove=True)


def test_a_journal_with_two_names_is_refused(tmp_path: Path):
    path = tmp_path / "run.db"
    EventBus([], journal=path).close()
    os.link(path, tmp_path / "other.db")
    with pytest.raises(JournalError, match=r"has 2 names \(hard links\)"):
        EventBus([], journal=tmp_path / "other.db")
    os.unlink(tmp_path / "other.db")
    EventBus([], journal=path).close()


def test_a_link_to_a_journal_is_the_journal(tmp_path: Path):
    path = tmp_path / "run.db"
    (tmp_path / "link.db").symlink_to(path)
    with EventBus([], journal=path), pytest.raises(JournalError, match="another bus in this"):
        EventBus([], journal=tmp_path / "link.db")


@pytest.mark.skipif(
    sqlite3.sqlite_version_info >= (3, 51), reason="this SQLite notices that its locks were dropped"
)
def test_a_log_that_another_program_took_away_is_noticed_and_nothing_is_lost(tmp_path: Path):
    """As `sqlite3` does with a script that has copied its own journal."""
    path = tmp_path / "run.db"
    script = """
        import sqlite3
        for number in range(20): bus.publish(number)
        meta = bus._parts.journal._journal.queries.meta
        while not meta("generation", 0): threading.Event().wait(0.01)
        open(sys.argv[1], "rb").close()  # that drops SQLite's locks
        print("ready", flush=True)
        sys.stdin.readline()
        from procbus import JournalError
        try:
            for number in range(20, 1000):
                bus.publish(number)
                threading.Event().wait(0.02)
        except JournalError as error:
            print(number, "deleted" in str(error), flush=True)
        sys.stdin.readline()
    """
    with running(path, script) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        other = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
        other += "print(c.execute('SELECT count(*) FROM events').fetchone()[0]); c.close()"
        shown = subprocess.run(
            [sys.executable, "-c", other, str(path)], capture_output=True, text=True, check=True
        )
        assert shown.stdout == "20\n"
        assert not os.path.exists(f"{path}-wal")
        process.stdin.write("\n")
        process.stdin.flush()
        number, told = process.stdout.readline().split()
        assert told == "True"
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe(int, ran.append, name="hold")
    assert sorted(ran) == list(range(int(number)))


# Directories.


def refusal(path: Path) -> str:
    with pytest.raises(JournalError) as caught:
        EventBus([], journal=path)
    return str(caught.value)


def test_a_directory_in_which_everybody_may_replace_files_is_refused(tmp_path: Path):
    tmp_path.chmod(0o777)
    assert "chmod go-w" in refusal(tmp_path / "run.db")
    assert os.listdir(tmp_path) == []
    (tmp_path / "below").mkdir(mode=0o700)
    assert f"everybody may replace files in {tmp_path}" in refusal(tmp_path / "below" / "run.db")
    tmp_path.chmod(0o755)
    EventBus([], journal=tmp_path / "below" / "run.db").close()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files to others takes root")


@as_root
def test_a_directory_of_another_user_is_refused(tmp_path: Path):
    os.chown(tmp_path, 1234, -1)
    assert "belongs to another user (uid 1234)" in refusal(tmp_path / "run.db")
    assert "belongs to another user" in status(made(tmp_path / "run.db"), "status").stderr


def made(path: Path) -> Path:
    path.touch(0o600)
    return path


@as_root
def test_a_group_that_has_others_in_it_may_not_write_the_directory(tmp_path: Path):
    os.chown(tmp_path, 0, 4_321)
    tmp_path.chmod(0o775)
    assert "may make and replace files" in refusal(tmp_path / "run.db")
    os.chown(tmp_path, 0, 0)
    EventBus([], journal=tmp_path / "run.db").close()


def test_in_a_directory_like_tmp_a_journal_works_and_leaves_one_file(tmp_path: Path):
    tmp_path.chmod(0o1777)
    path = tmp_path / "run.db"
    for _ in range(2):
        with EventBus([], journal=path) as bus:
            bus.subscribe(int, abs, name="abs")
            assert bus.publish(-1).result() == 1
            beside = set(os.listdir(tmp_path))
            assert beside == {f"run.db{suffix}" for suffix in files.SUFFIXES}
            assert status(path, "status").returncode == 0
            assert beside == set(os.listdir(tmp_path))
        assert os.listdir(tmp_path) == ["run.db"]
    assert status(path, "status").returncode == 0
    assert os.listdir(tmp_path) == ["run.db"]


@as_root
@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_in_a_directory_like_tmp_a_file_of_another_user_is_refused(tmp_path: Path, suffix: str):
    path = tmp_path / "run.db"
    EventBus([], journal=path).close()
    tmp_path.chmod(0o1777)
    placed = tmp_path / f"run.db{suffix}"
    if suffix:
        placed.write_bytes(b"")
    os.chown(placed, 1234, -1)
    assert "belongs to another user (uid 1234)" in refusal(path)
    assert placed.exists()


@as_root
@pytest.mark.parametrize("make", [files.prepare_files, files.guard_rollback])
def test_a_file_that_another_user_takes_away_as_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], None]
):
    """It was never ours, and they could put a rollback journal in its place."""
    tmp_path.chmod(0o1777)
    placed = str(tmp_path / "run.db-journal")
    real_open = os.open

    def open_it(name: str, flags: int, mode: int = 0o777) -> int:
        if name == placed:
            os.close(real_open(name, os.O_CREAT | os.O_WRONLY, 0o600))
            os.chown(name, 1234, -1)
            fd = real_open(name, flags & ~os.O_CREAT, mode)
            os.unlink(name)
            return fd
        return real_open(name, flags, mode)

    monkeypatch.setattr(os, "open", open_it)
    with pytest.raises(JournalError, match="belongs to another user"):
        make(str(tmp_path / "run.db"))


@as_root
def test_the_lock_is_no_file_of_another_user_who_may_take_it_away_and_write_to_it(tmp_path: Path):
    path = str(tmp_path / "run.db")
    placed = Path(f"{path}-intake")
    placed.touch(0o600)
    os.chown(placed, 1234, -1)
    with pytest.raises(JournalError, match="belongs to another user"):
        JournalLock(path)
    placed.unlink()
    JournalLock(path).release(remove=True)


@as_root
def test_other_users_cannot_place_a_file_for_sqlite_in_a_directory_like_tmp(tmp_path: Path):
    """Another user tries all the time, while the journal is opened again and again."""
    tmp_path.chmod(0o1777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    path = tmp_path / "run.db"
    EventBus([], journal=path).close()
    placer = """
import os, sys
os.setuid(65534)
print("ready", flush=True)
while os.getppid() != 1:
    for suffix in ("-wal", "-shm", "-journal"):
        try:
            os.close(os.open(sys.argv[1] + suffix, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError:
            continue
        os.unlink(sys.argv[1] + suffix)
"""
    with subprocess.Popen(
        [sys.executable, "-c", placer, str(path)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            for _ in range(30):
                try:
                    bus = EventBus([], journal=path)
                except JournalError:  # it was there first
                    continue
                with bus:
                    owners = {os.stat(f"{path}{each}").st_uid for each in files.SUFFIXES}
                    assert owners == {0}
        finally:
            other.kill()
