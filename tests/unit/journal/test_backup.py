# SPDX-License-Identifier: MIT
"""Copies of a journal: whole, of one moment, and journals of their own."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from procbus import EventBus, JournalError
from procbus.cli.main import main
from procbus.journal.inspection import Visit
from tests.journal_scripts import BOUND_S, killed, running, status
from tests.waits import eventually


def resumed(path: Path) -> list[int]:
    """The deliveries that a bus resumes from a journal; nothing must be lost."""
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe(int, ran.append, name="hold")
    assert bus.resume_summary is not None
    assert bus.resume_summary.lost == ()
    return sorted(ran)


def test_a_copy_of_a_live_journal_resumes_all_that_is_unfinished(tmp_path: Path):
    go_on = threading.Event()
    with EventBus([], journal=tmp_path / "run.db", io_workers=1) as bus:
        bus.subscribe(int, lambda _: go_on.wait(BOUND_S), name="hold")
        bus.subscribe("done", abs, name="done")
        bus.publish("done", 3, id="three").result()
        for number in range(100):
            bus.publish(number)
        bus.journal_backup(tmp_path / "copy.db")
        assert sorted(n for n in os.listdir(tmp_path) if n.startswith("copy")) == ["copy.db"]
        assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
        for number in range(100, 200):
            bus.publish(number)
        assert resumed(tmp_path / "copy.db") == list(range(100))
        go_on.set()
    ran: list[int] = []
    with EventBus([], journal=tmp_path / "copy.db") as again:
        again.subscribe("done", ran.append, name="done")
        again.publish("done", 3, id="three")
    assert ran == [], "the copy knows the id"
    assert resumed(tmp_path / "run.db") == []


def test_a_copy_while_many_publish_has_all_that_was_accepted_before(tmp_path: Path):
    path = tmp_path / "run.db"
    accepted: list[int] = []
    ended = threading.Event()
    with EventBus([], journal=path, keep="all", max_pending=200_000) as bus:
        bus.subscribe(int, abs, name="finishes")

        def publish(first: int) -> None:
            number = first
            while not ended.wait(0.0002):
                bus.publish(number)
                accepted.append(number)
                number += 1

        threads = [threading.Thread(target=publish, args=(n * 1_000_000,)) for n in range(2)]
        for thread in threads:
            thread.start()
        copies: list[tuple[Path, int]] = []
        try:
            for number in range(6):
                count = len(accepted)
                copy = tmp_path / f"copy {number}.db"
                bus.journal_backup(copy)
                copies.append((copy, count))
                eventually(lambda count=count: len(accepted) > count)  # type: ignore[misc]
        finally:
            ended.set()
            for thread in threads:
                thread.join(BOUND_S)
    for copy, count in copies:
        with Visit(str(copy)) as visit:
            assert visit.lost == []
            assert visit.status()["events"] >= count
    assert copies[0][1] < copies[-1][1]


def test_command_line_copies_a_live_journal_with_its_intake(tmp_path: Path):
    path = tmp_path / "run.db"
    script = """
        for number in range(50): bus.publish(number)
        print("ready", flush=True)
        sys.stdin.readline()
    """
    with running(path, script):
        done = status(path, "backup", str(tmp_path / "copy.db"))
        assert done.returncode == 0, done.stderr
        assert resumed(tmp_path / "copy.db") == list(range(50))
    assert resumed(path) == list(range(50))


def test_the_command_line_copies_the_journal_of_a_dead_bus(tmp_path: Path):
    path = killed(tmp_path / "run.db", "for number in range(50): bus.publish(number)")
    assert main(["journal", "backup", str(path), str(tmp_path / "copy.db")]) == 0
    assert resumed(tmp_path / "copy.db") == list(range(50))
    assert resumed(path) == list(range(50))


@pytest.mark.parametrize("suffix", ["", "-wal", "-intake"])
def test_copy_never_replaces_a_file(tmp_path: Path, suffix: str):
    there = tmp_path / f"copy.db{suffix}"
    there.write_text("precious")
    with EventBus([], journal=tmp_path / "run.db") as bus:
        with pytest.raises(JournalError, match="is there already"):
            bus.journal_backup(tmp_path / "copy.db")
        with pytest.raises(JournalError, match="is there already"):
            bus.journal_backup(tmp_path / "run.db")
    assert there.read_text() == "precious"
    assert set(os.listdir(tmp_path)) == {"run.db", there.name}


def test_a_copy_that_cannot_be_written_leaves_nothing(tmp_path: Path):
    with EventBus([], journal=tmp_path / "run.db") as bus:
        with pytest.raises(JournalError, match="make the directory"):
            bus.journal_backup(tmp_path / "no" / "copy.db")
        with pytest.raises(JournalError, match="cannot be written"):
            bus.journal_backup("/proc/copy.db")
        bus.subscribe(int, abs, name="abs")
        assert bus.publish(-1).result() == 1
    assert os.listdir(tmp_path) == ["run.db"]


def test_a_bus_without_a_journal_has_none_to_be_copied(tmp_path: Path):
    with EventBus([]) as bus, pytest.raises(JournalError, match="give the bus journal="):
        bus.journal_backup(tmp_path / "copy.db")
    assert os.listdir(tmp_path) == []
