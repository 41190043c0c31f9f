# SPDX-License-Identifier: MIT
"""Objects and clocks with a mind of their own, in a bus that has a journal."""

from __future__ import annotations

import threading
import time
from asyncio import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, SerializationError
from procbus.assembly import Makers
from procbus.journal import resume as feeding
from procbus.journal.journal import Journal
from tests.journal_scripts import BOUND_S, killed
from tests.parts import BusWith, Held, close_with_only

EXITS = (ValueError, SystemExit, GeneratorExit, CancelledError, KeyboardInterrupt)


class Hostile(Exception):
    """Raises a given exception, once it is pickled or loaded."""

    def __init__(self, error: type[BaseException], loading: bool = False) -> None:
        super().__init__("hostile")
        self.error = error
        self.loading = loading

    def __reduce__(self) -> Any:
        if self.loading:
            return _raise, (self.error,)
        raise self.error("from __reduce__")


def _raise(error: type[BaseException]) -> None:
    raise error("while it is loaded")


class Incomparable:
    """Comes back from JSON as something, and will not be compared."""

    def __eq__(self, other: object) -> bool:
        raise SystemExit

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("given_id", [None, "an id"])
@pytest.mark.parametrize("error", EXITS)
@pytest.mark.parametrize("count", [1, 2])
def test_an_event_that_cannot_be_pickled_is_refused_and_nothing_leaks(
    tmp_path: Path, error: type[BaseException], given_id: str | None, count: int
):
    raised = KeyboardInterrupt if error is KeyboardInterrupt else SerializationError
    with EventBus([], journal=tmp_path / "run.db", max_pending=2) as bus:
        for number in range(count):
            bus.subscribe(object, repr, name=f"repr {number}")
        for _ in range(5):
            with pytest.raises(raised):
                bus.publish(Hostile(error), id=given_id)
        assert bus.drain(BOUND_S)
        assert bus.publish("fine", id=given_id).wait(BOUND_S)


def test_an_event_that_refuses_to_be_compared_is_refused_by_the_json_codec(tmp_path: Path):
    with EventBus([], journal=tmp_path / "run.db", journal_codec="json") as bus:
        bus.subscribe(object, repr, name="repr")
        with pytest.raises(SerializationError):
            bus.publish(Incomparable())
        assert bus.publish("fine").result(BOUND_S) == "'fine'"


@pytest.mark.parametrize("loading", [False, True])
@pytest.mark.parametrize("error", EXITS)
def test_a_result_or_an_error_that_cannot_be_written_ends_its_delivery_all_the_same(
    tmp_path: Path, error: type[BaseException], loading: bool
):
    def answer(what: str) -> Exception:
        if what == "raise":
            raise Hostile(error, loading)
        return Hostile(error, loading)

    for _ in range(2):
        with EventBus([], journal=tmp_path / "run.db", keep="all", keep_results=True) as bus:
            bus.subscribe(str, answer, name="answer", retries=1, backoff=0.0)
            assert bus.publish("return", id="one").wait(BOUND_S)
            assert bus.publish("raise", id="two").wait(BOUND_S)
            assert bus.drain(BOUND_S)
            (letter,) = bus.dead_letters
            assert "hostile" in str(letter.error)


@pytest.mark.parametrize("error", [ValueError, SystemExit, CancelledError])
def test_an_event_that_cannot_be_loaded_is_reported_and_the_others_are_resumed(
    tmp_path: Path, error: type[BaseException], caplog: pytest.LogCaptureFixture
):
    held = Held()
    bus = EventBus([], journal=tmp_path / "run.db", io_workers=1)
    bus.subscribe(object, held, name="note")
    bus.publish("runs")
    held.wait_begun()
    bus.publish(Hostile(error, loading=True))
    bus.publish("waits")
    closing = close_with_only(1, bus)
    held.go.set()
    closing.join(BOUND_S)
    assert not closing.is_alive()
    ran: list[object] = []
    with EventBus([], journal=tmp_path / "run.db") as again:
        again.subscribe(object, ran.append, name="note")
    assert ran == ["waits"]
    assert again.resume_summary is not None
    assert again.resume_summary.unreadable == 1
    assert "cannot be loaded from the journal" in caplog.text


# Clocks.


def test_a_clock_that_was_set_back_holds_no_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = killed(
        tmp_path / "run.db",
        """
        def fail(_): raise ValueError
        bus.subscribe(str, fail, name="fails", retries=5, backoff=3600.0)
        bus.publish("again")
        meta = bus._parts.journal._journal.queries.meta
        while not bus._parts.journal._journal.queries.counts()["pending"]:
            threading.Event().wait(0.01)
        """,
    )
    monkeypatch.setattr(feeding, "time", lambda: time.time() - 30 * 86_400)
    asked: list[float] = []
    ran = threading.Event()

    def backoff(_attempt: int, _outcome: object) -> float:
        asked.append(0.05)
        return 0.05

    bus = EventBus([], journal=path)
    bus.subscribe(str, lambda _: ran.set(), name="fails", retries=5, backoff=backoff)
    bus.start()
    assert ran.wait(BOUND_S)
    assert asked
    bus.close()


def test_a_clock_that_is_set_forward_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "run.db"
    make = Makers(journal=partial(Journal, tidy_s=0.0))
    with BusWith(make, journal=path, keep="7 days") as bus:
        bus.subscribe(int, abs, name="abs")
        bus.publish(1, id="one").result(BOUND_S)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 3_650 * 86_400)
        bus.publish(2, id="two").result(BOUND_S)
    monkeypatch.undo()
    ran: list[int] = []
    with EventBus([], journal=path, keep="7 days") as bus:
        bus.subscribe(int, ran.append, name="abs")
        bus.publish(1, id="one")
    assert ran == []
