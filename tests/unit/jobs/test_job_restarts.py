# SPDX-License-Identifier: MIT
"""Jobs on a journal: what the next run of a script knows of them."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from procbus import (
    Cancelled,
    EventBus,
    Job,
    JobDone,
    JobFailed,
    OptionError,
    ProcbusError,
    current,
)
from procbus.journal.inspection import Visit
from tests.parts import BOUND_S


class Left(Exception):
    """A block that an exception leaves, as when a script fails."""


class Runs:
    """The runs of one script: each has a bus on the same journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: list[JobDone] = []
        self.seen: list[int] = []
        self.shut = threading.Event()

    def bus(self, *, listening: bool = True, subscribed: bool = True) -> EventBus:
        bus = EventBus([], journal=str(self.path), io_workers=1)
        if subscribed:
            bus.subscribe("number", self.take)
        if listening:
            bus.subscribe(JobDone, self.done.append)
        return bus

    def take(self, number: int) -> int:
        if number < 0:
            raise ValueError(number)
        if number > 100:
            self.shut.wait(BOUND_S)
            current().check()
        for each in range(number % 100 // 10):
            current().publish("number", each)
        self.seen.append(number)
        return number

    def cut_short(self, numbers: list[int], **options: Any) -> None:
        """Leave a run by an exception, with all of these numbers unfinished but the first."""
        bus = self.bus()
        bus.subscribe("wait", self.shut.wait, name="wait")
        with suppress(Left), bus, bus.job("sum", **options):
            first, *others = numbers
            bus.publish("number", first, id=str(first)).wait(BOUND_S)
            bus.publish("wait", BOUND_S)
            for number in others:
                bus.publish("number", number, id=str(number))
            self.release_later()
            raise Left

    def release_later(self) -> None:
        """Let the running handler end once the block waits for it."""
        timer = threading.Timer(0.05, self.shut.set)
        timer.daemon = True
        timer.start()

    def rows(self, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as database:
            return database.execute(sql).fetchall()

    def ids_of_done(self) -> list[Any]:
        return self.rows("SELECT given_id FROM ids WHERE given_id LIKE 'job:%'")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path / "run.db")
    yield runs
    runs.shut.set()


def counts(job: Job) -> tuple[int, int, int, int]:
    return job.succeeded, job.failed, job.cancelled, job.pending


def test_job_that_an_exception_cut_short_goes_on_in_the_next_run(runs: Runs) -> None:
    runs.cut_short([1, 2, 3])
    assert runs.done == []
    with runs.bus() as bus:
        bus.subscribe("wait", runs.shut.wait, name="wait")
        with bus.job("sum") as job:
            for number in (1, 2, 3):
                bus.publish("number", number, id=str(number))
            assert not job.done
        assert job.done
        assert counts(job) == (4, 0, 0, 0)
        bus.drain()
    assert runs.done == [JobDone("sum", "sum", 4, 0, 0)]
    assert sorted(runs.seen) == [1, 2, 3]
    assert runs.ids_of_done() == [("job:sum",)]


def test_job_that_was_done_says_so_and_is_not_told_again(runs: Runs) -> None:
    for _ in range(2):
        with runs.bus() as bus:
            with bus.job("sum") as job:
                bus.publish("number", 1, id="1")
            assert counts(job) == (1, 0, 0, 0)
    with runs.bus() as bus, bus.job("sum") as job:
        assert job.done
    assert runs.done == [JobDone("sum", "sum", 1, 0, 0)]


def test_done_job_waits_for_new_events_and_warns(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    with runs.bus() as bus:
        for number in (1, 2):  # the second block may come before the database has the first
            with bus.job("sum") as job:
                bus.publish("number", number)
            assert runs.seen[-1] == number
        assert counts(job) == (2, 0, 0, 0)
        bus.drain()
    assert runs.done == [JobDone("sum", "sum", 1, 0, 0)]
    assert "was done before with the id 'sum', and has 1 new deliveries" in caplog.text


def test_ids_tell_jobs_of_one_name_apart(runs: Runs) -> None:
    with runs.bus() as bus:
        for day in ("monday", "tuesday"):
            with bus.job("sum", id=day) as job:
                bus.publish("number", 1)
            assert (job.id, counts(job)) == (day, (1, 0, 0, 0))
        bus.drain()
    assert [done.id for done in runs.done] == ["monday", "tuesday"]


def test_two_open_blocks_of_one_id_are_refused(runs: Runs) -> None:
    with runs.bus() as bus, bus.job("sum"):
        second = bus.job("sum")
        with pytest.raises(ProcbusError, match=r"id=\.\.\."), second:
            pass
        with bus.job("sum", id="another") as another:
            bus.publish("number", 1)
        assert another.done


def test_id_needs_a_journal_and_text() -> None:
    with EventBus([]) as bus, pytest.raises(OptionError, match="remembered by a journal"):
        bus.job("sum", id="today")


@pytest.mark.parametrize("id", ["", 7, "\ud800"])
def test_bad_id_is_refused(runs: Runs, id: Any) -> None:
    with runs.bus() as bus, pytest.raises(OptionError, match="job"):
        bus.job("sum", id=id)


def close_in_the_block(runs: Runs) -> None:
    """Leave a block, with work that the bus gives up as it closes."""
    bus = runs.bus()
    bus.subscribe("wait", runs.shut.wait, name="wait")
    left = threading.Event()

    def script() -> None:
        with suppress(ProcbusError), bus.job("sum"):
            bus.publish("number", 1, id="1").wait(BOUND_S)
            bus.publish("wait", BOUND_S, id="wait")
            bus.publish("number", 2, id="2")
            left.set()

    thread = threading.Thread(target=script)
    thread.start()
    assert left.wait(BOUND_S)
    state = bus._parts.job_book()  # noqa: SLF001 - nothing public tells that the block is left
    while state._known["sum"].in_block:  # noqa: SLF001
        threading.Event().wait(0.001)
    runs.release_later()
    bus.close(cancel=True)
    thread.join(BOUND_S)
    assert not thread.is_alive()
    assert runs.done == []


@pytest.mark.parametrize("opened", [True, False])
def test_job_whose_block_was_left_ends_in_the_next_run(runs: Runs, opened: bool) -> None:
    close_in_the_block(runs)
    assert runs.rows("SELECT left_block, done_at FROM jobs") == [(1, None)]
    with runs.bus() as bus:
        bus.subscribe("wait", runs.shut.wait, name="wait")
        if opened:
            with bus.job("sum") as job:
                pass
            assert job.done
        bus.drain()
    assert [(done.id, done.succeeded) for done in runs.done] == [("sum", 3)]
    assert runs.rows("SELECT succeeded, failed, cancelled FROM jobs") == [(3, 0, 0)]
    assert runs.rows("SELECT * FROM owned") == []
    with runs.bus() as bus:
        bus.drain()
    assert len(runs.done) == 1


def test_block_that_was_never_left_is_not_done_without_another(runs: Runs) -> None:
    runs.cut_short([1, 2])
    with runs.bus() as bus:
        bus.subscribe("wait", runs.shut.wait, name="wait")
        bus.drain()
    assert sorted(runs.seen) == [1, 2]
    assert runs.done == []
    with runs.bus() as bus:
        with bus.job("sum") as job:
            pass
        bus.drain()
    assert counts(job) == (3, 0, 0, 0)
    assert len(runs.done) == 1


def test_job_is_told_once_a_handler_takes_it(runs: Runs) -> None:
    close_in_the_block(runs)
    with runs.bus(listening=False) as bus:
        bus.subscribe("wait", runs.shut.wait, name="wait")
        bus.drain()
    assert runs.done == []
    with runs.bus() as bus:
        bus.drain()
    assert [done.succeeded for done in runs.done] == [3]


def test_block_does_not_wait_for_a_handler_that_is_not_subscribed(runs: Runs) -> None:
    runs.cut_short([1, 2, 3])
    with runs.bus(subscribed=False) as bus:
        bus.subscribe("wait", runs.shut.wait, name="wait")
        with bus.job("sum") as job:
            assert job.wait(BOUND_S)
        assert not job.done
        assert counts(job) == (2, 0, 0, 2)
    assert runs.done == []
    with runs.bus() as bus:
        bus.drain()
    assert runs.done == [JobDone("sum", "sum", 4, 0, 0)]


def test_failed_and_cancelled_deliveries_of_earlier_runs_count(runs: Runs) -> None:
    bus = runs.bus()
    with suppress(Left), bus, bus.job("sum") as job:
        bus.publish("number", -1, id="bad").wait(BOUND_S)
        bus.publish("number", 101)
        bus.publish("number", 5, id="5").cancel()
        assert counts(job) == (0, 1, 1, 1)
        runs.release_later()
        raise Left
    with runs.bus() as bus:
        with bus.job("sum") as job:
            bus.publish("number", -1, id="bad")
        assert counts(job) == (1, 1, 1, 0)
        bus.dead_letters.replay()  # it belongs to no job now
        bus.drain()
    assert runs.done == [JobDone("sum", "sum", 1, 1, 1)]
    assert runs.rows("SELECT succeeded, failed, cancelled FROM jobs") == [(1, 1, 1)]


def test_dead_letter_counts_for_the_job_that_replays_it(runs: Runs) -> None:
    with runs.bus() as bus:
        with bus.job("first") as first:
            bus.publish("number", -1)
        with bus.job("second") as second:
            bus.dead_letters.replay()
    assert counts(first) == counts(second) == (0, 1, 0, 0)
    assert runs.rows("SELECT id, failed FROM jobs") == [("first", 1), ("second", 1)]
    assert runs.rows("SELECT * FROM owned") == []


def test_max_failed_counts_the_failures_of_one_run(runs: Runs) -> None:
    def fail(bus: EventBus, name: str) -> None:
        with bus.job("sum", max_failed=1):
            bus.publish("number", -1, id=name).wait(BOUND_S)
            if name != "c":
                raise Left

    for name in "ab":
        with suppress(Left), runs.bus() as bus:
            fail(bus, name)
    with runs.bus() as bus:
        fail(bus, "c")
        bus.drain()
        with pytest.raises(JobFailed), bus.job("other", max_failed=0):
            bus.publish("number", -1)
    assert runs.done[0] == JobDone("sum", "sum", 0, 3, 0)


def test_inner_job_goes_on_too(runs: Runs) -> None:
    def script(bus: EventBus, *, fails: bool) -> tuple[Job, Job]:
        with bus.job("outer") as outer:
            bus.publish("number", 1, id="1")
            with bus.job("inner") as inner:
                bus.publish("number", 2, id="2").wait(BOUND_S)
                if fails:
                    raise Left
        return outer, inner

    with suppress(Left), runs.bus() as bus:
        script(bus, fails=True)
    assert runs.done == []
    with runs.bus() as bus:
        outer, inner = script(bus, fails=False)
        bus.drain()
    # The JobDone of the inner job belongs to the outer one.
    assert (counts(outer), counts(inner)) == ((3, 0, 0, 0), (1, 0, 0, 0))
    assert [done.name for done in runs.done] == ["inner", "outer"]


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_jobs_of_handlers_have_ids_of_their_own(runs: Runs, kind: Any) -> None:
    def nested(number: int) -> None:
        with bus.job("nested"):
            current().publish("number", number)

    with runs.bus() as bus:
        bus.subscribe("nest", nested, name="nested")
        with bus.job("sum", max_failed=0) as job:
            for number in (1, 2):
                bus.publish("nest", number)
        bus.drain()
    ids = sorted(done.id for done in runs.done)
    assert ids[0].startswith("nested@nested#")
    assert len(set(ids)) == 3
    assert job.succeeded == 6


def test_journal_of_the_first_schema_is_taken_over(runs: Runs) -> None:
    runs.cut_short([1, 2])
    with closing(sqlite3.connect(runs.path)) as database:
        database.executescript(
            "DROP TABLE jobs; DROP TABLE owned; DROP TABLE schedules; PRAGMA user_version = 1"
        )
    with runs.bus() as bus:
        bus.subscribe("wait", runs.shut.wait, name="wait")
        with bus.job("sum") as job:
            bus.publish("number", 7)
        bus.drain()
    assert counts(job) == (1, 0, 0, 0)
    assert sorted(runs.seen) == [1, 2, 7]


def test_old_jobs_are_purged(runs: Runs) -> None:
    for id in ("a", "b"):
        bus = EventBus([], journal=str(runs.path), keep=1.0)
        with bus, bus.job("sum", id=id):
            pass
        with closing(sqlite3.connect(runs.path)) as database, database:
            database.execute("UPDATE jobs SET touched_at = 1 WHERE id = 'a'")
    assert runs.rows("SELECT id FROM jobs") in ([("a",), ("b",)], [("b",)])


def test_journal_without_jobs_writes_nothing_about_them(runs: Runs) -> None:
    with runs.bus() as bus:
        bus.publish("number", 1, id="1")
        bus.drain()
    assert runs.rows("SELECT * FROM jobs") == runs.rows("SELECT * FROM owned") == []


def test_logging_of_a_done_job_without_new_events_is_silent(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with runs.bus() as bus, bus.job("sum"):
                bus.publish("number", 1, id="1")
    assert caplog.text == ""


# A cancelled job stays cancelled.


@pytest.mark.parametrize("opened", [True, False])
def test_cancelled_job_stays_cancelled_in_the_next_run(
    runs: Runs, opened: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bus = runs.bus()
    with suppress(Left), bus, bus.job("sum") as job:
        bus.publish("number", 1, id="1").wait(BOUND_S)
        for each in (2, 3):
            bus.publish("number", each, id=str(each), delay=3_600)
        # As if the script died between this note and the cancelling.
        records = bus._parts.job_book()._records  # noqa: SLF001
        assert records is not None
        records.cancel(job._state.number)  # noqa: SLF001
        raise Left
    assert runs.rows("SELECT cancelled_at IS NULL FROM jobs") == [(0,)]
    with runs.bus() as bus:
        if opened:
            with bus.job("sum") as job:
                for each in (1, 2, 3, 4):
                    bus.publish("number", each, id=str(each))
            assert counts(job) == (1, 0, 3, 0)
        bus.drain()
    assert runs.seen == [1]
    assert len(runs.done) == opened
    assert ("was cancelled with the id 'sum', and stays cancelled" in caplog.text) == opened


def test_job_cancelled_in_its_block_is_cancelled_for_the_next_block(runs: Runs) -> None:
    with runs.bus() as bus, bus.job("sum") as job:
        job.cancel()
    for _ in range(2):
        with runs.bus() as bus:
            with bus.job("sum") as job:
                receipt = bus.publish("number", 1)
            with pytest.raises(Cancelled, match="its job sum was cancelled"):
                receipt.result()
            with bus.job("sum", id="anew") as job:
                bus.publish("number", 2, id="2")
            assert counts(job) == (1, 0, 0, 0)
    assert runs.seen == [2]


def test_job_cancelled_before_its_block_is_recorded_as_cancelled(runs: Runs) -> None:
    with runs.bus() as bus:
        job = bus.job("sum")
        job.cancel()
        with job:
            bus.publish("number", 1)
    assert runs.rows("SELECT cancelled, cancelled_at IS NULL FROM jobs") == [(1, 0)]
    assert runs.seen == []


def test_job_that_failed_too_often_goes_on_in_the_next_run(runs: Runs) -> None:
    with runs.bus() as bus, pytest.raises(JobFailed), bus.job("sum", max_failed=0):
        bus.publish("number", -1)
    with runs.bus() as bus, bus.job("sum", max_failed=0):
        bus.publish("number", 1)
    assert runs.seen == [1]


def test_journal_of_the_second_schema_is_taken_over(runs: Runs) -> None:
    runs.cut_short([1, 2])
    with closing(sqlite3.connect(runs.path)) as database:
        database.executescript("ALTER TABLE jobs DROP COLUMN cancelled_at; PRAGMA user_version = 2")
    with Visit(str(runs.path)) as visit:
        assert [job["state"] for job in visit.jobs()] == ["block open"]
    with runs.bus() as bus:
        bus.subscribe("wait", runs.shut.wait, name="wait")
        with bus.job("sum") as job:
            assert not job.done
        bus.drain()
    assert sorted(runs.seen) == [1, 2]
