# SPDX-License-Identifier: MIT
"""Every journal, whatever it survives: a bus that is closed and made again finds its records."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from procbus import (
    Accepted,
    BusClosed,
    DeliveryState,
    EventBus,
    NoSuchHandler,
    OptionError,
    ProcbusError,
    SerializationError,
    current,
)
from procbus.bus import parts_of
from tests.parts import Held, close_with_only, in_thread
from tests.waits import BOUND_S, eventually

MakeBus = Callable[..., EventBus]


@dataclass(frozen=True)
class Order:
    number: int


class Refused(Exception):
    pass


@pytest.fixture(params=["process", "power"])
def make_bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeBus]:
    made: list[EventBus] = []

    def make(**options: Any) -> EventBus:
        given: dict[str, Any] = {"cpu_workers": 1, "journal": tmp_path / "run.db"}
        made.append(EventBus([], durability=request.param, **(given | options)))
        return made[-1]

    yield make
    for bus in made:
        bus.close(cancel=True)


def stop_before_it_runs(bus: EventBus, publish: Callable[[], object]) -> None:
    """Have something published, and the bus closed before any handler begins it.

    A handler that holds the only thread sees to that.
    """
    held = Held()
    bus.subscribe("hold", held, name="hold")
    bus.publish("hold", "")
    held.wait_begun()
    publish()
    closing = close_with_only(1, bus)
    held.go.set()
    closing.join(BOUND_S)
    assert not closing.is_alive()


def test_finished_delivery_is_not_run_again(make_bus: MakeBus):
    for _ in range(2):
        ran: list[int] = []
        with make_bus() as bus:
            bus.subscribe(int, ran.append, name="note")
            assert bus.resume_summary is not None
            assert bus.resume_summary.unfinished == 0
            bus.publish(7)
        assert ran == [7]


def test_deliveries_not_begun_run_at_the_next_start_in_order(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    first.subscribe(int, lambda n: None, name="note")
    stop_before_it_runs(first, lambda: [first.publish(n) for n in range(5)])

    ran: list[int] = []
    with make_bus(io_workers=1) as again:
        again.subscribe(int, ran.append, name="note")
        summary = again.resume_summary
        assert summary is not None
        assert (summary.unfinished, dict(summary.resumed)) == (5, {})
        again.publish(5)
    assert ran == [0, 1, 2, 3, 4, 5]
    assert again.resume_summary is not None
    assert dict(again.resume_summary.resumed) == {"note": 5}


def test_listener_that_waits_for_a_publisher_while_the_journal_resumes_is_overtaken(
    make_bus: MakeBus, caplog: pytest.LogCaptureFixture
):
    first = make_bus(io_workers=1)
    first.subscribe(int, lambda n: None, name="note")
    stop_before_it_runs(first, lambda: first.publish(0))
    ran: list[int] = []
    published = threading.Event()
    with make_bus(io_workers=1) as again:
        again.subscribe(int, ran.append, name="note")
        journal = parts_of(again).journal
        assert journal is not None
        journal.patience_s = 0.05

        def publish() -> None:
            again.publish(1)
            published.set()

        def accepted(moment: Accepted) -> None:
            if moment.receipt.event == 0:
                in_thread(publish)
                assert published.wait(BOUND_S)

        again.listen(SimpleNamespace(accepted=accepted))
        again.start()
    assert ran == [1, 0]
    (warned,) = [each for each in caplog.messages if "held up the resuming" in each]
    assert warned.startswith("a listener, or a function given to a subscription")
    assert "raised" not in caplog.text


def test_leaving_the_block_resumes_though_nothing_is_published(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    first.subscribe(int, lambda n: None, name="note")
    stop_before_it_runs(first, lambda: first.publish(1))
    ran: list[int] = []
    with make_bus() as again:
        again.subscribe(int, ran.append, name="note")
    assert ran == [1]


def test_a_handler_that_is_gone_loses_nothing(make_bus: MakeBus, caplog: pytest.LogCaptureFixture):
    first = make_bus(io_workers=1)
    first.subscribe(int, lambda n: None, name="old")
    stop_before_it_runs(first, lambda: first.publish(1))

    with make_bus() as without:
        without.subscribe(str, lambda s: None, name="other")
        without.publish("x").wait(BOUND_S)
        assert without.resume_summary is not None
        assert dict(without.resume_summary.missing) == {"old": 1}
    assert "NoSuchHandler: the journal has 1 deliveries for old" in caplog.text

    ran: list[int] = []
    with make_bus() as later:
        later.publish("x")  # resumes: no handler is there yet
        later.subscribe(int, ran.append, name="old")
        later.drain(BOUND_S)
        assert ran == [1]


def test_the_same_key_keeps_its_order_over_a_restart(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    first.subscribe(int, lambda n: None, name="note", key=lambda n: n % 2)
    stop_before_it_runs(first, lambda: [first.publish(n) for n in range(20)])
    ran: list[int] = []
    with make_bus(io_workers=8) as again:
        again.subscribe(int, ran.append, name="note", key=lambda n: n % 2)
        for number in range(20, 40):
            again.publish(number)
    for parity in (0, 1):
        assert [n for n in ran if n % 2 == parity] == list(range(parity, 40, 2))


def test_unfinished_deliveries_are_resumed_as_there_is_room(make_bus: MakeBus):
    first = make_bus(io_workers=1, max_pending=2_000)
    first.subscribe(int, lambda n: None, name="note")
    stop_before_it_runs(first, lambda: [first.publish(n) for n in range(1_500)])
    ran: list[int] = []
    with make_bus(io_workers=1, max_pending=10, on_full="raise") as again:
        again.subscribe(int, ran.append, name="note")
        assert again.drain(BOUND_S)
    assert ran == list(range(1_500))


def test_a_delivery_has_one_id_at_each_attempt_and_run(make_bus: MakeBus):
    seen: list[tuple[str, bool, int]] = []

    def look(_: int) -> None:
        here = current()
        seen.append((here.delivery_id, here.redelivered, here.attempt))
        raise Refused

    first = make_bus(io_workers=1)
    first.subscribe(int, look, name="look", retries=1, backoff=0)
    stop_before_it_runs(first, lambda: first.publish(1))
    assert seen == []
    with make_bus() as again:
        again.subscribe(int, look, name="look", retries=1, backoff=0)
        again.publish(2)
    ids = [delivery_id for delivery_id, _, _ in seen]
    assert len(set(ids)) == 2
    assert sorted((again, attempt) for _, again, attempt in seen) == [
        (False, 1),
        (False, 2),
        (True, 1),
        (True, 2),
    ]


def test_cpu_handler_knows_delivery_id_and_attempt_too(make_bus: MakeBus):
    with make_bus() as bus:
        bus.subscribe(int, whoami, kind="cpu", name="whoami")
        one, other = bus.publish(1).result(BOUND_S), bus.publish(2).result(BOUND_S)
    assert one[0] != other[0]
    assert (one[1], other[1]) == (False, False)


def whoami(_: int) -> tuple[str, bool]:
    return current().delivery_id, current().redelivered


def test_attempts_are_counted_over_restarts(make_bus: MakeBus):
    first = make_bus()
    failed = threading.Event()

    def fail(_: int) -> None:
        failed.set()
        raise Refused("not yet")

    first.subscribe(int, fail, name="fragile", retries=2, backoff=3_600)
    first.publish(1)
    assert failed.wait(BOUND_S)
    eventually(lambda: first.stats().retrying)
    first.close(cancel=True)

    again = make_bus()
    again.subscribe(int, fail, name="fragile", retries=2, backoff=3_600)
    again.publish("resumes")
    assert again.stats().retrying == 1, "it is due in an hour, and not before"
    again.close(cancel=True)

    with make_bus() as patient:  # one that is not retried any more is run at once
        attempts: list[int] = []
        patient.subscribe(int, lambda _: attempts.append(current().attempt), name="fragile")
    assert attempts == [2]


def test_a_dead_letter_is_there_at_the_next_start_and_can_be_replayed(make_bus: MakeBus):
    def fail(order: Order) -> None:
        raise Refused(f"no {order.number}")

    with make_bus() as bus:
        bus.subscribe(Order, fail, name="sell")
        bus.publish(Order(4)).wait(BOUND_S)
    sold: list[Order] = []
    with make_bus() as again:
        again.subscribe(Order, sold.append, name="sell")
        assert again.drain(BOUND_S)
        (letter,) = again.dead_letters
        assert (letter.event, letter.handler, letter.attempts) == (Order(4), "sell", 1)
        assert isinstance(letter.error, Refused)
        assert "no 4" in letter.stacks[0]
        again.dead_letters.replay(letter).result(BOUND_S)
        assert sold == [Order(4)]
    with make_bus() as third:
        assert third.drain(BOUND_S)
        assert third.dead_letters == ()


def test_a_dead_letter_that_is_cleared_is_gone(make_bus: MakeBus):
    def fail(_: int) -> None:
        raise Refused

    with make_bus() as bus:
        bus.subscribe(int, fail, name="fail")
        bus.publish(1).wait(BOUND_S)
        bus.dead_letters.clear()
    with make_bus() as again:
        assert again.drain(BOUND_S)
        assert again.dead_letters == ()


def test_an_id_runs_once(make_bus: MakeBus):
    ran: list[int] = []
    with make_bus() as bus:
        bus.subscribe(int, ran.append, name="note")
        first = bus.publish(1, id="one")
        assert first.wait(BOUND_S)
        second = bus.publish(1, id="one")
        assert second.id == first.id
        assert second.done
    with make_bus() as again:
        again.subscribe(int, ran.append, name="note")
        third = again.publish(1, id="one")
        assert third.id == first.id
        assert [d.state for d in third.deliveries] == [DeliveryState.SUCCEEDED]
        again.publish(2, id="two")
    assert ran == [1, 2]


class Fragile:
    """A handler that refuses events until it is mended."""

    def __init__(self) -> None:
        self.mended = False

    def __call__(self, event: int) -> int:
        if not self.mended:
            raise Refused(f"no {event}")
        return event * 2


def until_the_database_has_it(bus: EventBus, given_id: str) -> None:
    """Wait until the receipt of an id is not in memory any more."""
    ids = bus._parts.journal._journal.ids  # type: ignore[union-attr] # noqa: SLF001 - no caller can tell
    bus.publish(0)  # the journal moves what it has with the next record
    eventually(lambda: ids.get(given_id) is None)


@pytest.mark.parametrize("late", [False, True])
def test_an_id_follows_the_replay_of_its_dead_letter(make_bus: MakeBus, late: bool):
    fragile = Fragile()
    with make_bus(keep_results=True) as bus:
        bus.subscribe("order", fragile, name="fragile")
        failed = bus.publish("order", 1, id="one")
        assert failed.wait(BOUND_S)
        if late:
            until_the_database_has_it(bus, "one")
        fragile.mended = True
        (replayed,) = bus.dead_letters.replay()
        assert replayed.result(BOUND_S) == 2
        assert replayed.id == failed.id
        assert bus.publish("order", 1, id="one").result(BOUND_S) == 2
        if late:
            until_the_database_has_it(bus, "one")
            assert bus.publish("order", 1, id="one").result(BOUND_S) == 2
        with pytest.raises(Refused):
            failed.result()
    with make_bus(keep_results=True) as again:
        again.subscribe("order", fragile, name="fragile")
        assert again.publish("order", 1, id="one").result(BOUND_S) == 2
        assert again.dead_letters == ()


def test_an_id_of_several_handlers_has_all_of_them_after_a_replay(make_bus: MakeBus):
    fragile, go_on = Fragile(), threading.Event()

    def slow(event: int) -> int:
        assert go_on.wait(BOUND_S)
        return event

    with make_bus(keep_results=True) as bus:
        bus.subscribe("order", abs, name="abs")
        bus.subscribe("order", fragile, name="fragile")
        bus.subscribe("order", slow, name="slow")
        failed = bus.publish("order", 1, id="one")
        eventually(lambda: len(bus.dead_letters) == 1)
        fragile.mended = True
        (replayed,) = bus.dead_letters.replay()
        assert replayed.result(BOUND_S) == 2
        joint = bus.publish("order", 1, id="one")
        assert not joint.done
        told: list[object] = []
        joint.when_done(told.append)
        go_on.set()
        assert joint.results(BOUND_S) == [1, 2, 1]
        assert failed.wait(BOUND_S)
        eventually(lambda: told == [joint])
    with make_bus(keep_results=True) as again:
        for name in ("abs", "fragile", "slow"):
            again.subscribe("order", fragile, name=name)
        assert again.publish("order", 1, id="one").results(BOUND_S) == [1, 2, 1]


@pytest.mark.parametrize("late", [False, True])
def test_an_id_of_a_cleared_dead_letter_says_so_at_once(make_bus: MakeBus, late: bool):
    with make_bus() as bus:
        bus.subscribe("order", Fragile(), name="fragile")
        bus.publish("order", 1, id="one").wait(BOUND_S)
        if late:
            until_the_database_has_it(bus, "one")
        bus.dead_letters.clear()
        with pytest.raises(ProcbusError, match="fragile was cancelled with event #1, or failed"):
            bus.publish("order", 1, id="one").result(BOUND_S)
    with make_bus() as again:
        again.subscribe("order", Fragile(), name="fragile")
        with pytest.raises(ProcbusError, match="fragile was cancelled with event #1, or failed"):
            again.publish("order", 1, id="one").result(BOUND_S)


class SlowToPickle(Exception):
    """Holds up the thread that writes the failure to the journal, until the test lets it go on."""

    go_on = threading.Event()

    def __reduce__(self) -> tuple[type[Refused], tuple[str]]:
        if threading.current_thread() is not threading.main_thread():
            assert self.go_on.wait(BOUND_S)
        return Refused, ("slow",)


@pytest.mark.parametrize("cleared", [False, True])
def test_a_dead_letter_may_be_replayed_or_cleared_before_its_failure_is_written(
    make_bus: MakeBus, cleared: bool
):
    mended = False
    SlowToPickle.go_on.clear()

    def fragile(event: int) -> int:
        if not mended:
            raise SlowToPickle
        return event * 2

    with make_bus(keep_results=True) as bus:
        bus.subscribe("order", fragile, name="fragile")
        failed = bus.publish("order", 1, id="one")
        eventually(lambda: len(bus.dead_letters) == 1)
        mended = True
        if cleared:
            bus.dead_letters.clear()
        else:
            (replayed,) = bus.dead_letters.replay()
            assert replayed.id == failed.id
        SlowToPickle.go_on.set()
        if not cleared:
            assert replayed.result(BOUND_S) == 2
            assert bus.publish("order", 1, id="one").result(BOUND_S) == 2
    with make_bus(keep_results=True) as again:
        again.subscribe("order", fragile, name="fragile")
        if cleared:
            with pytest.raises(ProcbusError, match="was replayed or cleared"):
                again.publish("order", 1, id="one").result(BOUND_S)
        else:
            assert again.publish("order", 1, id="one").result(BOUND_S) == 2
        assert again.drain(BOUND_S)
        assert again.dead_letters == ()


def test_a_replay_that_was_not_finished_runs_once_at_the_next_start(make_bus: MakeBus):
    fragile = Fragile()
    with make_bus() as bus:
        bus.subscribe("order", fragile, name="fragile")
        failed = bus.publish("order", 1)
        assert failed.wait(BOUND_S)
    again = make_bus(io_workers=1)
    again.subscribe("order", fragile, name="fragile")
    stop_before_it_runs(again, lambda: [again.drain(0), again.dead_letters.replay()])
    ran: list[tuple[int, bool]] = []

    def note(event: int) -> None:
        ran.append((current().event_id, current().redelivered))

    with make_bus() as third:
        third.subscribe("order", note, name="fragile")
        third.subscribe("hold", note, name="hold")
        assert third.drain(BOUND_S)
        assert third.dead_letters == ()
    assert (failed.id, True) in ran
    assert len({event_id for event_id, _ in ran}) == len(ran)


def test_many_publishers_of_one_id_run_it_once(make_bus: MakeBus):
    ran: list[int] = []
    receipts = []
    with make_bus() as bus:
        bus.subscribe(int, ran.append, name="note")
        start = threading.Barrier(8)

        def publish() -> None:
            start.wait(BOUND_S)
            for number in range(50):
                receipts.append(bus.publish(number, id=str(number)))

        threads = [threading.Thread(target=publish) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
    assert sorted(ran) == list(range(50))
    assert len({receipt.id for receipt in receipts}) == 50
    assert all(receipt.done for receipt in receipts)


def test_unfinished_id_gives_the_receipt_of_the_resumed_delivery(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    first.subscribe(int, lambda n: None, name="note")
    stop_before_it_runs(first, lambda: first.publish(1, id="one"))
    ran: list[int] = []
    with make_bus() as again:
        again.subscribe(int, ran.append, name="note")
        assert again.publish(1, id="one").wait(BOUND_S)
    assert ran == [1]


def test_unfinished_delivery_of_an_id_that_another_handler_finished_is_resumed(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    first.subscribe(int, lambda n: None, name="note")
    held = Held()
    first.subscribe("hold", held, name="hold")

    async def done(event: int) -> int:
        return event

    first.subscribe(int, done, name="done")
    first.publish("hold", "")
    held.wait_begun()
    receipt = first.publish(1, id="one")
    eventually(lambda: any(each.outcome for each in receipt.deliveries))
    closing = close_with_only(1, first)
    held.go.set()
    closing.join(BOUND_S)
    ran: list[int] = []
    with make_bus() as again:
        again.subscribe(int, ran.append, name="note")
        again.subscribe(int, done, name="done")
        assert again.publish(1, id="one").wait(BOUND_S)
    assert ran == [1]


def test_an_id_whose_handler_is_gone_says_so(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    first.subscribe(int, lambda n: None, name="note")
    stop_before_it_runs(first, lambda: first.publish(1, id="one"))
    with make_bus() as again:
        receipt = again.publish(1, id="one")
        assert receipt.done
        with pytest.raises(NoSuchHandler, match="waits in the journal for the handler note"):
            receipt.result()


def test_an_id_that_failed_gives_its_error_again(make_bus: MakeBus):
    def fail(_: int) -> None:
        raise Refused("too late")

    with make_bus() as bus:
        bus.subscribe(int, fail, name="fail")
        bus.publish(1, id="one").wait(BOUND_S)
    with make_bus() as again:
        again.subscribe(int, fail, name="fail")
        with pytest.raises(Refused, match="too late"):
            again.publish(1, id="one").result(BOUND_S)
        assert len(again.dead_letters) == 1, "it was not run again"


def test_a_stream_goes_on_where_the_last_one_ended(make_bus: MakeBus):
    ran: list[int] = []
    for end in (100, 300):
        with make_bus() as bus:
            bus.subscribe(int, ran.append, name="note")
            receipts = list(bus.stream(range(end), id=str))
            assert len(receipts) == end
            assert all(receipt.done for receipt in receipts)
    assert sorted(ran) == list(range(300))


def test_results_are_kept_where_asked(make_bus: MakeBus):
    for _ in range(2):
        with make_bus(keep_results=True) as bus:
            bus.subscribe("io", lambda n: n + 1, name="io")
            bus.subscribe("cpu", double, kind="cpu", name="cpu")
            assert bus.publish("io", 1, id="io").result(BOUND_S) == 2
            assert bus.publish("cpu", 4, id="cpu").result(BOUND_S) == 8


@pytest.mark.parametrize("returned", [9, None])
def test_a_result_that_was_not_kept_is_an_error_and_not_none(make_bus: MakeBus, returned: Any):
    with make_bus() as bus:
        bus.subscribe("n", lambda _: returned, name="sq")
        assert bus.publish("n", 3, id="3").result(BOUND_S) == returned
    with make_bus(keep_results=True) as again:  # too late for the result of the first run
        again.subscribe("n", lambda _: returned, name="sq")
        receipt = again.publish("n", 3, id="3")
        (delivery,) = receipt.deliveries
        lacking = r"to sq finished in an earlier run, .* keep_results=True"
        for result in (receipt.result, receipt.results, delivery.result):
            with pytest.raises(ProcbusError, match=lacking):
                result()

        async def wait() -> None:
            await receipt

        with pytest.raises(ProcbusError, match=lacking):
            asyncio.run(wait())
        (streamed,) = again.stream([3], topic="n", id=str)
        with pytest.raises(ProcbusError, match=lacking):
            streamed.result()
        assert receipt.done
        assert delivery.state is DeliveryState.SUCCEEDED
        assert delivery.exception() is None
        assert delivery.outcome is not None
        assert delivery.outcome.value is None


def test_none_in_the_journal_is_the_result(make_bus: MakeBus):
    for _ in range(2):
        with make_bus(keep_results=True) as bus:
            bus.subscribe("n", lambda _: None, name="none")
            assert bus.publish("n", 3, id="3").result(BOUND_S) is None


def test_result_of_several_that_was_not_kept_is_an_error(make_bus: MakeBus):
    for keep_results in (False, True):
        with make_bus(keep_results=keep_results) as bus:
            bus.subscribe("n", lambda n: n + 1, name="more")
            bus.subscribe("n", lambda n: n - 1, name="less")
            receipt = bus.publish("n", 3, id="3")
            assert receipt.wait(BOUND_S)
    with pytest.raises(ProcbusError, match="to more finished in an earlier run"):
        receipt.results()
    assert [d.state for d in receipt.deliveries] == [DeliveryState.SUCCEEDED] * 2


def test_a_result_that_the_bus_let_go_of_in_this_run_is_an_error(make_bus: MakeBus):
    with make_bus() as bus:
        bus.subscribe("n", lambda n: n + 1, name="more")
        first = bus.publish("n", 3, id="3")
        assert first.result(BOUND_S) == 4
        bus.subscribe(bytes, lambda b: None, name="note")
        bus.publish(b"x" * (9 << 20))  # has the journal move all before it into the database
        with pytest.raises(ProcbusError, match="to more finished earlier in this run"):
            bus.publish("n", 3, id="3").result()


def double(number: int) -> int:
    current().publish("child", number)
    return 2 * number


def test_events_of_a_cpu_handler_are_journalled_with_its_success(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    children: list[int] = []
    first.subscribe("cpu", double, kind="cpu", name="cpu")
    first.subscribe("child", children.append, name="child")
    # The io lane is held, so the child is not run by this bus.
    stop_before_it_runs(first, lambda: first.publish("cpu", 5).wait(BOUND_S))
    assert children == []
    with make_bus() as again:
        again.subscribe("cpu", double, kind="cpu", name="cpu")
        again.subscribe("child", children.append, name="child")
        assert again.drain(BOUND_S)
    assert children == [5]


def test_events_of_an_io_handler_survive(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    ran: list[int] = []

    async def parent(n: int) -> None:
        current().publish("child", n)

    first.subscribe("parent", parent, name="parent")
    first.subscribe("child", ran.append, name="child")
    stop_before_it_runs(first, lambda: first.publish("parent", 3).wait(BOUND_S))
    with make_bus() as again:
        again.subscribe("child", ran.append, name="child")
    assert ran == [3]


def test_an_event_larger_than_the_intake_is_kept_too(make_bus: MakeBus):
    large = b"x" * (9 << 20)
    first = make_bus(io_workers=1)
    first.subscribe(bytes, lambda b: None, name="note")
    stop_before_it_runs(first, lambda: first.publish(large))
    ran: list[bytes] = []
    with make_bus() as again:
        again.subscribe(bytes, ran.append, name="note")
    assert ran == [large]


def test_an_event_that_cannot_be_written_is_refused_with_where_it_sits(make_bus: MakeBus):
    with make_bus() as bus:
        bus.subscribe(dict, lambda d: None, name="note")
        with pytest.raises(SerializationError, match=r"event\['lock'\]"):
            bus.publish({"lock": threading.Lock()})
        assert bus.drain(BOUND_S), "what was refused is not pending"


def test_two_functions_of_one_name_on_one_event_need_two_names(make_bus: MakeBus):
    with make_bus() as bus:
        bus.subscribe(int, print, name="same")
        bus.subscribe(object, repr, name="same")
        with pytest.raises(ProcbusError, match="give each its own, with name="):
            bus.publish(1)
        assert bus.drain(BOUND_S)


def test_a_second_bus_is_refused_with_the_pid_of_the_first(make_bus: MakeBus):
    says = pytest.raises(ProcbusError, match=f"another bus in this process .{os.getpid()}")
    with make_bus(), says:
        make_bus()
    make_bus().close()


def test_without_a_journal_an_id_is_refused():
    with EventBus([]) as bus, pytest.raises(OptionError, match="remembered by a journal"):
        bus.publish(1, id="one")


@pytest.mark.parametrize("ordered", [False, True])
def test_a_stream_without_ids_is_whole(make_bus: MakeBus, ordered: bool):
    with make_bus() as bus:
        bus.subscribe(int, abs, name="abs")
        receipts = list(bus.stream(range(2_000), ordered=ordered))
    assert sorted(receipt.event for receipt in receipts) == list(range(2_000))


def test_an_event_loop_publishes_and_streams_too(make_bus: MakeBus):
    ran: list[int] = []

    async def main() -> None:
        async with make_bus() as bus:
            bus.subscribe(int, ran.append, name="note")
            await bus.apublish(1, id="1")
            again = await bus.apublish(1, id="1")
            await again
            await bus.apublish(2)
            async for receipt in bus.astream(range(3, 50), id=str):
                assert receipt.done

    asyncio.run(main())
    assert sorted(ran) == list(range(1, 50))


def test_an_event_loop_resumes_without_being_blocked(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    first.subscribe(int, lambda n: None, name="note")
    stop_before_it_runs(first, lambda: [first.publish(n) for n in range(50)])
    ran: list[int] = []

    async def main() -> None:
        async with make_bus(max_pending=5) as bus:

            async def note(number: int) -> None:  # needs the loop of the bus, and room
                ran.append(number)

            bus.subscribe(int, note, name="note")
            await bus.apublish(50)

    asyncio.run(main())
    assert sorted(ran) == list(range(51))


def test_closed_bus_says_that_cancelled_deliveries_are_kept(
    make_bus: MakeBus, caplog: pytest.LogCaptureFixture
):
    bus = make_bus(io_workers=1)
    bus.subscribe(int, lambda n: None, name="note")
    stop_before_it_runs(bus, lambda: bus.publish(1))
    assert "1 not run (note 1). They are in the journal, and run at the next start" in caplog.text


def test_a_forked_child_leaves_the_journal_alone(make_bus: MakeBus):
    ran: list[int] = []
    with make_bus() as bus:
        bus.subscribe(int, ran.append, name="note")
        bus.publish(1).wait(BOUND_S)
        pid = os.fork()
        if not pid:  # the child: what it returns says how it went
            try:
                bus.publish(2)
            except BusClosed:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        with pytest.raises(ProcbusError, match="another bus in this process"):
            make_bus()  # the lock is still held
        bus.publish(3).wait(BOUND_S)
    assert ran == [1, 3]


@pytest.mark.parametrize("given_id", ["\ud800", "a\x00b", "\U0001f600", "", " "])
def test_any_text_is_an_id_or_is_refused_at_once(make_bus: MakeBus, given_id: str):
    ran: list[int] = []
    for _ in range(2):
        with make_bus() as bus:
            bus.subscribe(int, ran.append, name="note")
            try:
                bus.publish(1, id=given_id)
            except SerializationError:
                assert given_id == "\ud800"
            list(bus.stream([2], id=lambda _: given_id + "2") if given_id != "\ud800" else [])
    assert sorted(ran) == ([] if given_id == "\ud800" else [1, 2])


def test_an_id_that_is_no_text_is_refused(make_bus: MakeBus):
    with make_bus() as bus, pytest.raises(ProcbusError, match="id must be a string, not 5"):
        bus.publish(1, id=5)  # type: ignore[call-overload] # that is the test


def test_publisher_with_the_id_of_a_refused_event_does_not_wait_for_ever(
    make_bus: MakeBus,
):
    entered, go_on = threading.Event(), threading.Event()

    class Unwritable:
        def __reduce__(self) -> Any:
            entered.set()
            go_on.wait(BOUND_S)
            raise TypeError("it cannot be pickled")

    with make_bus() as bus:
        bus.subscribe(Unwritable, lambda _: None, name="note")
        refused: list[Exception] = []

        def publish() -> None:
            try:
                bus.publish(Unwritable(), id="one")
            except SerializationError as error:
                refused.append(error)

        first = threading.Thread(target=publish)
        first.start()
        assert entered.wait(BOUND_S)
        shared = bus.publish(Unwritable(), id="one")
        go_on.set()
        first.join(BOUND_S)
        assert len(refused) == 1
        assert shared.wait(BOUND_S)
        with pytest.raises(SerializationError, match="cannot be written"):
            shared.result()
        assert bus.drain(BOUND_S)


def test_events_of_a_callable_without_handlers_harm_no_record(make_bus: MakeBus):
    first = make_bus(io_workers=1)
    first.subscribe("cpu", double, kind="cpu", name="cpu")
    first.subscribe("later", abs, name="later")
    with first.executor("cpu") as executor:
        assert executor.submit(double, 3).result(BOUND_S) == 6  # its child reaches no handler
    stop_before_it_runs(first, lambda: first.publish("later", 1))
    ran: list[int] = []
    with make_bus() as again:
        again.subscribe("later", ran.append, name="later")
    assert ran == [1]
