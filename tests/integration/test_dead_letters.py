# SPDX-License-Identifier: MIT
"""Dead letters of a bus with real workers: read, replayed, kept in a file over the script's end."""

import logging
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from procbus import (
    BusClosed,
    DeadLetter,
    DeadLetters,
    EventBus,
    NoSuchHandler,
    OutcomeKind,
    Receipt,
    WorkerDied,
    current,
)
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S, Tally


@dataclass(frozen=True)
class Order:
    id: int
    #: The handlers fail while this file is not there.
    fixed: str
    tally: Tally


def charge(order: Order) -> str:
    order.tally.note("charge")
    if not os.path.exists(order.fixed):
        raise ValueError(f"order {order.id} cannot be charged")
    return f"charged {order.id}"


def ship(order: Order) -> str:
    order.tally.note("ship")
    return f"shipped {order.id}"


def crash(order: Order) -> None:
    order.tally.note("crash")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def order(tmp_path: Path, tally: Tally) -> Order:
    return Order(5, str(tmp_path / "fixed"), tally)


def published(bus: EventBus, order: Order) -> Receipt:
    receipt = bus.publish(order)
    assert receipt.wait(PATIENCE_S)
    return receipt


def summaries(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m for r in caplog.records if "not looked at" in (m := r.getMessage())]


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_every_attempt_is_in_the_letter_with_its_stack(kind, order):
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(Order, charge, kind=kind, name="charge", retries=2, backoff=0)
        receipt = published(bus, order)
        letters = bus.dead_letters
        assert isinstance(letters, DeadLetters)
        (letter,) = letters
    assert (letter.event_id, letter.event, letter.topic) == (receipt.id, order, None)
    assert (letter.handler, letter.kind, letter.attempts) == ("charge", kind, 3)
    assert isinstance(letter.error, ValueError)
    assert [outcome.kind for outcome in letter.outcomes] == [OutcomeKind.RAISED] * 3
    for stack in letter.stacks:
        assert "in charge\n" in stack
        assert "ValueError: order 5 cannot be charged" in stack
    assert "attempt 3: raised" in str(letter)


def test_delivery_that_killed_its_workers_is_quarantined(order):
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(Order, crash, kind="cpu", name="crash", retries=5, backoff=0, max_crashes=1)
        published(bus, order)
        (letter,) = bus.dead_letters
    assert letter.quarantined
    assert [type(outcome.error) for outcome in letter.outcomes] == [WorkerDied] * 2
    assert order.tally.lines() == ["crash"] * 2


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_a_letter_is_replayed_for_its_own_handler_alone(kind, order):
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(Order, charge, kind=kind)
        bus.subscribe(Order, ship)
        published(bus, order)
        Path(order.fixed).touch()
        letters = bus.dead_letters
        (receipt,) = letters.filter(handler=charge).replay()
        assert receipt.result(PATIENCE_S) == "charged 5"
        assert receipt.id > letters[0].event_id
        assert bus.dead_letters == ()
    assert order.tally.counts() == {"charge": 2, "ship": 1}


def test_replayed_letter_that_fails_again_is_a_letter_again(order):
    with EventBus([]) as bus:
        bus.subscribe(Order, charge)
        published(bus, order)
        letters = bus.dead_letters
        receipt = letters.replay(letters[0])
        assert receipt.wait(PATIENCE_S)
        (again,) = bus.dead_letters
    assert again.event_id == receipt.id
    assert again not in letters


def test_letter_that_cannot_be_replayed_stays(order):
    bus = EventBus([])
    with bus:
        bus.subscribe(Order, charge)
        published(bus, order)
        bus.unsubscribe(charge)
        with pytest.raises(NoSuchHandler, match="charge, which is not subscribed"):
            bus.dead_letters.replay()
        bus.subscribe(Order, charge)
        assert len(bus.dead_letters) == 1
    with pytest.raises(BusClosed):
        bus.dead_letters.replay()
    assert len(bus.dead_letters) == 1


SCRIPT = """
    import sys
    from dataclasses import dataclass
    from procbus import EventBus, ProcbusError, subscribe

    @dataclass(frozen=True)
    class Page:
        url: str

    class Unreadable(Exception):
        pass

    @subscribe(kind="cpu")
    def extract(page: Page):
        if "save" in sys.argv:
            raise Unreadable(page.url)
        assert isinstance(page, Page), "it has to be the script's own class"
        return page.url

    with EventBus(cpu_workers=1) as bus:
        if "save" in sys.argv:
            import logging
            logging.disable()
            bus.publish(Page("http://x")).wait()
            print(bus.dead_letters.save("letters"))
        else:
            letters = bus.dead_letters.load("letters")
            letter, = letters.filter(error=Unreadable, handler=extract)
            assert "in extract" in letter.stacks[0]
            print(letters.replay(letter).result(), len(bus.dead_letters))
"""


def test_letters_outlive_the_script_and_come_back_as_its_own_classes(run: Run):
    # The sys.argv of a worker is the script's: loky hands it on.
    assert run(SCRIPT, "save").check() == "1\n"
    assert run(SCRIPT).check() == "http://x 0\n"


def test_another_script_can_read_saved_letters(run: Run):
    assert run(SCRIPT, "save").check() == "1\n"
    text = """
        from procbus import EventBus
        with EventBus([]) as bus:
            letter, = bus.dead_letters.load("letters")
            print(letter.event, letter.event.url, repr(letter.error))
    """
    assert run(text).check() == "Page(url='http://x') http://x Unreadable('http://x')\n"


# The hook.


def test_hook_is_called_once_for_each_final_failure(order):
    got: list[DeadLetter] = []
    with EventBus([], on_failure=got.append) as bus:
        bus.subscribe(Order, charge, retries=1, backoff=0)
        bus.subscribe(Order, ship)
        published(bus, order)
    assert got == list(bus.dead_letters)
    assert [letter.attempts for letter in got] == [2]


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_events_of_the_hook_never_wait_for_room(kind, order):
    # The thread that settles is the one that makes room: if it waited, it would wait for ever.
    apologies: list[object] = []
    parents: list[int | None] = []

    def on_failure(letter: DeadLetter) -> None:
        assert current().handler == letter.handler
        for number in range(3):
            parents.append(bus.publish("apology", (letter.event.id, number)).parent_id)

    bus = EventBus([], cpu_workers=1, max_pending=1, on_failure=on_failure)
    with bus:
        bus.subscribe(Order, charge, kind=kind)
        bus.subscribe("apology", apologies.append)
        receipt = published(bus, order)
        assert bus.drain(PATIENCE_S)
    assert sorted(apologies, key=str) == [(5, 0), (5, 1), (5, 2)]
    assert parents == [receipt.id] * 3


def test_hook_that_raises_harms_no_delivery(order, caplog):
    def on_failure(letter: DeadLetter) -> None:
        raise SystemExit("the user's mistake")

    with EventBus([], cpu_workers=1, on_failure=on_failure) as bus:
        bus.subscribe(Order, charge, kind="cpu", name="charge")
        receipt = published(bus, order)
        Path(order.fixed).touch()
        assert published(bus, order).result() == "charged 5"
        assert len(bus.dead_letters) == 1
    text = f"on_failure= raised for charge with event #{receipt.id}"
    assert text in [record.getMessage() for record in caplog.records]


# Failures that were never looked at.


def test_unseen_failures_are_summed_up_when_the_bus_closes(order, caplog):
    with EventBus([]) as bus:
        bus.subscribe(Order, charge, name="charge")
        for _ in range(3):
            published(bus, order)
        with pytest.raises(ValueError, match="cannot be charged"):
            published(bus, order).result()
    bus.close()
    assert summaries(caplog) == [
        "bus closed with 3 failures not looked at: charge 3 (ValueError 3); see bus.dead_letters"
    ]


@pytest.mark.parametrize("look", ["result", "results", "exception", "letters", "hook"])
def test_failure_that_was_looked_at_is_not_mentioned(order, caplog, look):
    with EventBus([], on_failure=(lambda letter: None) if look == "hook" else None) as bus:
        bus.subscribe(Order, charge)
        receipt = published(bus, order)
        if look in ("result", "results"):
            with pytest.raises(ValueError, match="cannot be charged"):
                getattr(receipt, look)()
        elif look == "exception":
            assert receipt.deliveries[0].exception() is not None
        elif look == "letters":
            assert bus.dead_letters[0].event == order
    assert summaries(caplog) == []


def test_letters_from_a_file_are_not_mentioned(order, caplog, tmp_path):
    with EventBus([]) as bus:
        bus.subscribe(Order, charge)
        published(bus, order)
        bus.dead_letters.save(tmp_path / "letters")
    with EventBus([]) as bus:
        assert len(bus.dead_letters.load(tmp_path / "letters")) == 1
    assert summaries(caplog) == []


def test_looking_replaying_and_failing_at_the_same_time(order):
    logging.getLogger("procbus").disabled = True
    try:
        with EventBus([], io_workers=4) as bus:
            bus.subscribe(Order, charge)
            stop = threading.Event()
            replayed: list[Receipt] = []

            def replay() -> None:
                while not stop.is_set():
                    replayed.extend(bus.dead_letters[:3].replay())

            thread = threading.Thread(target=replay)
            thread.start()
            receipts = [bus.publish(order) for _ in range(300)]
            for receipt in receipts:
                assert receipt.wait(PATIENCE_S)
            stop.set()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
            assert bus.drain(PATIENCE_S)
            # Each replay took one letter out and put one in.
            assert len(bus.dead_letters) == len(receipts)
            assert len(order.tally.lines()) == len(receipts) + len(replayed)
    finally:
        logging.getLogger("procbus").disabled = False
