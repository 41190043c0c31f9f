"""Schedules: one event a tick, none while the one before goes on, and an end with the bus."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from procbus import BusClosed, EventBus, OptionError, Schedule, TopicError, current
from procbus.testing import Clock, InlineBus
from tests.waits import BOUND_S, eventually


@dataclass(frozen=True)
class Beat:
    number: int = 1


class Stage:
    """A bus whose clock the test turns, and the events of its handler with their times."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.bus = InlineBus([], clock=self.clock)
        self.seen: list[tuple[Any, float]] = []
        self.bus.subscribe("beat", self.note)
        self.bus.subscribe(Beat, self.note, name="by class")

    def note(self, event: Any) -> None:
        self.seen.append((event, self.clock.now()))


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    with stage.bus:
        yield stage


def test_schedule_publishes_after_each_interval(stage: Stage) -> None:
    schedule = stage.bus.every("5 min", "beat", 7)
    stage.clock.advance(299)
    assert stage.seen == []
    stage.clock.advance(601)
    assert stage.seen == [(7, 300.0), (7, 600.0), (7, 900.0)]
    assert (schedule.published, schedule.skipped, schedule.cancelled) == (3, 0, False)
    assert schedule.name == "beat every 5 min"


def test_schedule_of_an_object_is_routed_by_its_class(stage: Stage) -> None:
    schedule = stage.bus.every(60, Beat())
    stage.clock.advance(60)
    assert stage.seen == [(Beat(), 60.0)]
    assert schedule.name == "Beat every 1 min"


def test_schedules_and_delays_take_turns_by_their_times(stage: Stage) -> None:
    stage.bus.every(10, "beat", "ten")
    stage.bus.every(4, "beat", "four")
    stage.bus.publish("beat", "late", delay=9)
    stage.clock.advance(12)
    assert [event for event, _ in stage.seen] == ["four", "four", "late", "ten", "four"]


def test_cancelled_schedule_publishes_no_more(stage: Stage) -> None:
    schedule = stage.bus.every(10, "beat", 1)
    stage.clock.advance(10)
    schedule.cancel()
    schedule.cancel()
    stage.clock.advance(100)
    assert stage.seen == [(1, 10.0)]
    assert schedule.cancelled
    assert schedule.next_at is None
    assert "ended, 1 published" in repr(schedule)


def test_name_of_a_schedule_is_free_once_it_is_cancelled(stage: Stage) -> None:
    first = stage.bus.every(10, "beat", 1)
    with pytest.raises(OptionError, match="has a schedule 'beat every 10 s' already"):
        stage.bus.every(10, "beat", 2)
    first.cancel()
    stage.bus.every(10, "beat", 3)
    stage.bus.every(10, "beat", 4, name="other")
    first.cancel()
    stage.clock.advance(10)
    assert sorted(event for event, _ in stage.seen) == [3, 4]


def test_times_of_a_schedule_can_be_read(stage: Stage) -> None:
    schedule = stage.bus.every(10, "beat", 1)
    assert schedule.last_at is None
    stage.clock.advance(15)
    last_at, next_at = schedule.last_at, schedule.next_at
    assert isinstance(last_at, datetime)
    assert isinstance(next_at, datetime)
    assert next_at.tzinfo is not None
    assert round((next_at - last_at).total_seconds(), 3) == 10.0
    assert isinstance(schedule, Schedule)


def test_drain_waits_for_no_tick(stage: Stage) -> None:
    stage.bus.every(10, "beat", 1)
    assert stage.bus.drain()
    assert stage.seen == []


def test_tick_of_a_cron_line_follows_the_clock_of_the_test(stage: Stage) -> None:
    stage.bus.every("@hourly", "beat", 1)
    stage.clock.advance(3 * 3_600)
    assert len(stage.seen) == 3
    assert stage.seen[1][1] - stage.seen[0][1] == pytest.approx(3_600, abs=1e-3)


def test_handler_makes_a_schedule(stage: Stage) -> None:
    stage.bus.subscribe("begin", lambda _: stage.bus.every(10, "beat", current().event_id))
    stage.bus.publish("begin", None)
    stage.clock.advance(10)
    assert stage.seen == [(1, 10.0)]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((5, "beat"), OptionError, r"needs a payload .*: every\(5, 'beat', None\)"),
        ((5, "beat.*", 1), TopicError, "publish to a concrete topic"),
        (("soon", "beat", 1), OptionError, "is no time"),
    ],
)
def test_wrong_schedule_is_refused(
    stage: Stage, arguments: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        stage.bus.every(*arguments)


@pytest.mark.parametrize("name", ["", 5, "two\nlines"])
def test_name_that_cannot_be_shown_is_refused(stage: Stage, name: Any) -> None:
    with pytest.raises(OptionError, match="name must be a string of printable characters"):
        stage.bus.every(5, "beat", 1, name=name)


# With real time: its own thread.


@pytest.mark.parametrize("inline", [False, True])
def test_schedule_ticks_by_itself_and_ends_with_its_bus(
    inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if inline:
        monkeypatch.setenv("PROCBUS_INLINE", "1")
    seen: list[str] = []
    with EventBus([]) as bus:
        bus.subscribe("beat", lambda _: seen.append(threading.current_thread().name))
        schedule = bus.every(0.01, "beat", 1)
        eventually(lambda: len(seen) >= 3)
        assert bus.drain(BOUND_S)
    count = len(seen)
    assert schedule.cancelled
    assert schedule.published == count
    assert (set(seen) == {"procbus-schedules"}) is inline
    with pytest.raises(BusClosed):
        bus.every(1, "beat", 1)
    assert len(seen) == count


def test_tick_publishes_nothing_while_the_event_before_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    free = threading.Event()
    with EventBus([]) as bus, caplog.at_level(logging.WARNING, "procbus"):
        bus.subscribe("beat", lambda _: free.wait(BOUND_S))
        schedule = bus.every(0.01, "beat", 1)
        eventually(lambda: schedule.skipped >= 3)
        assert schedule.published == 1
        assert bus.stats().pending == 1
        free.set()
        eventually(lambda: schedule.published >= 2)
    told = [record for record in caplog.messages if "left out a tick" in record]
    assert len(told) == 1


def test_tick_that_cannot_publish_is_counted_and_the_next_one_tries_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(event: Any) -> bool:
        raise AssertionError(event)

    with EventBus([], max_pending=1, on_full="raise") as bus:
        bus.subscribe("late", print)
        bus.subscribe("beat", print)
        late = bus.publish("late", 1, delay=3_600)
        schedule = bus.every(0.01, "beat", "free")
        eventually(lambda: schedule.skipped >= 2)
        assert schedule.published == 0
        assert caplog.text.count("could not publish (logged once") == 1
        late.cancel()
        eventually(lambda: schedule.published)


def test_closing_bus_is_not_held_up_by_a_tick_that_waits_for_room() -> None:
    with EventBus([], max_pending=1) as bus:
        bus.subscribe("late", print)
        bus.subscribe("beat", print)
        bus.publish("late", 1, delay=3_600)
        bus.every(0.01, "beat", 1)
        eventually(lambda: any(t.name == "procbus-schedules" for t in threading.enumerate()))
        bus.close(cancel=True)
    assert bus.stats().pending == 0
