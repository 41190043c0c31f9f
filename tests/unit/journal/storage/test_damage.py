# SPDX-License-Identifier: MIT
"""Damage to the files of a journal: readable records are resumed, and losses are reported."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from procbus import EventBus, JournalError
from procbus.journal.storage.frames import START
from procbus.journal.storage.intake import HALF
from tests.journal_scripts import killed, status
from tests.matrix import quick_first

COUNT = 50


def resumed(path: Path) -> tuple[list[int], tuple[str, ...]]:
    """The deliveries that a bus resumes, and the losses that it reports."""
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe(int, ran.append, name="hold")
    assert bus.resume_summary is not None
    return sorted(ran), bus.resume_summary.lost


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal of a killed bus, with all in the intake."""
    return killed(tmp_path / "run.db", f"for number in range({COUNT}): bus.publish(number)")


def flip(path: Path, at: int) -> None:
    with open(f"{path}-intake", "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def test_flipped_bit_costs_one_record_and_is_reported(path: Path, caplog: pytest.LogCaptureFixture):
    flip(path, 2_000)
    ran, lost = resumed(path)
    assert len(ran) == COUNT - 1
    (missing,) = set(range(COUNT)) - set(ran)
    (told,) = lost
    assert f"behind event #{missing} and before event #{missing + 2}" in told  # events are from 1
    errors = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert any(told in each for each in errors)
    assert resumed(path) == ([], ()), "it is told once"


@pytest.mark.parametrize("sector", quick_first(range(6), 2))
def test_sector_of_zeros_costs_only_its_events_and_is_reported(path: Path, sector: int):
    with open(f"{path}-intake", "r+b") as file:
        file.seek(sector * 512)
        file.write(bytes(512))
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe(int, ran.append, name="hold")
        # The name of the handler is in the first sector.
        bus.subscribe(int, ran.append, name="unknown-1")
    assert COUNT - 8 <= len(ran) < COUNT
    assert bus.resume_summary is not None
    assert bus.resume_summary.lost


def test_the_name_of_a_handler_that_is_lost_is_not_given_to_others(path: Path):
    flip(path, START + 20)  # the first record names the handler
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe(int, ran.append, name="another")
        bus.publish(-1)
    assert bus.resume_summary is not None
    assert ran == [-1]
    assert dict(bus.resume_summary.missing) == {"unknown-1": COUNT}
    with EventBus([], journal=path) as bus:
        bus.subscribe(int, ran.append, name="unknown-1")
    assert sorted(ran) == list(range(-1, COUNT))


@pytest.mark.slow
def test_a_half_of_which_all_is_finished_is_not_written_and_is_no_gap(tmp_path: Path):
    path = killed(
        tmp_path / "run.db",
        """
        bus.subscribe(str, len, name="len")
        journal = bus._parts.journal._journal
        bus.publish("first").result()
        while journal._intake.generation < 2: threading.Event().wait(0.01)
        for generation in (2, 3, 4):
            bus.publish("x").result()
            while journal._intake.generation == generation: threading.Event().wait(0.01)
        assert journal.queries.meta("generation", 0) == 1, "the names"
        for number in range(3): bus.publish(number)
        """,
    )
    assert resumed(path) == ([0, 1, 2], ())
    assert resumed(path) == ([], ())


def test_an_intake_that_was_taken_away_is_reported(path: Path):
    os.unlink(f"{path}-intake")
    ran, (told,) = resumed(path)
    assert ran == []
    assert "is not there" in told


def test_a_bus_that_was_closed_leaves_nothing_to_miss(tmp_path: Path):
    for _ in range(2):
        with EventBus([], journal=tmp_path / "run.db") as bus:
            bus.subscribe(int, abs, name="abs")
            bus.publish(1)
        assert bus.resume_summary is not None
        assert bus.resume_summary.lost == ()


def test_a_bus_that_was_killed_at_its_start_has_lost_nothing(tmp_path: Path):
    assert resumed(killed(tmp_path / "run.db", "")) == ([], ())


def test_a_database_that_is_older_than_the_intake_is_reported(tmp_path: Path):
    """As after a loss of power on a disk that lied about its flushes."""
    path = tmp_path / "run.db"
    saved = tmp_path / "saved"
    saved.mkdir()
    killed(
        path,
        f"""
        import shutil
        def moves():
            before = bus._parts.journal._journal.queries.meta("generation", 0)
            bus.publish(before)
            while bus._parts.journal._journal.queries.meta("generation", 0) == before:
                threading.Event().wait(0.01)
        moves()
        for suffix in ("", "-wal"):
            shutil.copy(sys.argv[1] + suffix, {str(saved)!r} + "/run.db" + suffix)
        bus.subscribe(int, repr, name="late")
        for _ in range(3): moves()
        """,
    )
    shutil.copy(f"{path}-intake", saved / "run.db-intake")
    for each in saved.iterdir():
        each.chmod(0o600)
    ran, lost = resumed(saved / "run.db")
    assert lost
    assert "begins later than the journal ends" in lost[0]
    assert ran


def test_machine_that_stopped_is_reported_if_the_last_seconds_may_be_lost(
    path: Path,
):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET value = value || '!' WHERE name = 'in_use'")
        connection.commit()
    ran, (told,) = resumed(path)
    assert ran == list(range(COUNT))
    assert "the machine stopped" in told
    assert f"behind event #{COUNT}" in told


def test_visit_reports_a_loss_and_leaves_it_for_the_bus(path: Path):
    flip(path, 2_000)
    for _ in range(2):
        shown = json.loads(status(path, "status", "--json").stdout)
        assert len(shown["lost"]) == 1
    assert "LOST: " in status(path, "status").stdout
    ran, lost = resumed(path)
    assert list(lost) == shown["lost"]
    assert len(ran) == COUNT - 1


def test_records_that_make_no_sense_are_reported(tmp_path: Path):
    write = """
        bus.publish(7)
        bus._parts.journal._journal.write(b"\\xeebut whole")
    """
    ran, (told,) = resumed(killed(tmp_path / "run.db", write))
    assert ran == [7]
    assert "1 records that this procbus cannot read" in told


def test_damage_to_the_intake_of_a_live_bus_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "run.db"
    with EventBus([], journal=path) as bus:
        bus.subscribe("later", abs, name="abs")
        for number in range(3):
            bus.publish("later", number)
        flip(path, START + 150)
        assert bus.drain(55)
        bus.close()
    assert bus.resume_summary is not None
    assert len(bus.resume_summary.lost) == 1
    assert "is damaged" in caplog.text


def test_a_page_of_zeros_anywhere_in_the_database_is_reported(path: Path, tmp_path: Path):
    shown = json.loads(status(path, "status", "--json").stdout)  # that moves all into the database
    assert shown["events"] == COUNT
    data = path.read_bytes()
    told = 0
    for page in range(1, len(data) // 4_096):
        damaged = tmp_path / f"damaged {page}.db"
        zeros = bytes(4_096)
        damaged.write_bytes(data[: page * 4_096] + zeros + data[(page + 1) * 4_096 :])
        damaged.chmod(0o600)
        try:
            ran, lost = resumed(damaged)
        except JournalError:
            told += 1
        else:
            assert len(ran) == COUNT or lost, f"page {page}"
            told += len(ran) < COUNT
    assert told


@pytest.mark.parametrize("table", ["dead", "pending"])
def test_damaged_outcomes_are_reported_and_keep_nothing_from_being_resumed(
    tmp_path: Path, table: str
):
    path = tmp_path / "run.db"

    def fail(number: int) -> None:
        raise ValueError(number)

    with EventBus([], journal=path) as bus:
        bus.subscribe(int, fail, name="hold")
        bus.publish(1)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE dead SET outcomes = x'80054bff'")
        if table == "pending":
            database.execute("INSERT INTO pending SELECT number, 1, 0, outcomes FROM dead")
            database.execute("DELETE FROM dead")
    if table == "pending":
        assert resumed(path) == ([1], ())
        return
    with EventBus([], journal=path) as bus:
        assert bus.drain(55)
        (letter,) = bus.dead_letters
        assert "cannot be read from the journal" in str(letter.error)


def test_halves_are_as_large_as_this_test_has_them():
    assert HALF > 6 * 512, "the sectors above are in the first half"
