# SPDX-License-Identifier: MIT
"""Batch handlers: lists of events, on every lane and pool, with an end for each event."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from procbus import (
    BatchFailed,
    DeliveryState,
    EventBus,
    HandlerTimeout,
    OptionError,
    OutcomeKind,
    ProcbusError,
    Receipt,
    SerializationError,
    Settled,
    Started,
    WorkerDied,
    current,
)
from procbus.testing import Clock, InlineBus
from tests.clusters import HAS_DASK, NO_DASK, cluster, warm_up
from tests.journal_scripts import killed
from tests.waits import BOUND_S, eventually

#: A wait that no test waits for.
FOR_EVER_S = 3_600.0


def doubled(numbers: list[int]) -> list[int]:
    assert len(current().event_ids) == len(numbers)
    return [2 * number for number in numbers]


def doubled_any(numbers: list[Any]) -> list[Any]:
    return doubled(numbers)


async def doubled_later(numbers: list[int]) -> list[int]:
    await asyncio.sleep(0)
    return doubled(numbers)


def odd_ones_fail(numbers: list[int]) -> None:
    errors = {i: ValueError(number) for i, number in enumerate(numbers) if number % 2}
    raise BatchFailed(errors, [2 * number for number in numbers])


async def odd_ones_fail_later(numbers: list[int]) -> None:
    odd_ones_fail(numbers)


@pytest.fixture(
    params=["threads", "event loop", "processes", "cpu on threads", "inline", "pickled"]
)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def bus_for(place: str) -> EventBus:
    if place in ("inline", "pickled"):
        return InlineBus([], pickling=place == "pickled", clock=Clock())
    return EventBus([], cpu="threads" if place == "cpu on threads" else "processes", cpu_workers=2)


def kind_at(place: str) -> Any:
    return "cpu" if place in ("processes", "cpu on threads", "pickled") else "io"


def publish_all(bus: EventBus, events: list[Any]) -> list[Receipt]:
    receipts = [bus.publish("number", event) for event in events]
    assert bus.drain(BOUND_S)
    return receipts


def errors_of(receipts: list[Receipt]) -> list[BaseException | None]:
    return [receipt.deliveries[0].exception() for receipt in receipts]


def test_each_event_has_its_result(place: str) -> None:
    function: Any = doubled_later if place == "event loop" else doubled
    with bus_for(place) as bus:
        bus.subscribe("number", function, kind=kind_at(place), batch=8, batch_wait=FOR_EVER_S)
        receipts = publish_all(bus, list(range(20)))

        assert [receipt.result() for receipt in receipts] == [2 * n for n in range(20)]
        stats = bus.stats()
        [of_handler] = stats.handlers.values()
        assert (of_handler.published, of_handler.succeeded, stats.pending) == (20, 20, 0)
        assert all(receipt.deliveries[0].attempts == 1 for receipt in receipts)


def test_batch_that_fails_in_part_fails_these_events_alone(place: str) -> None:
    function: Any = odd_ones_fail_later if place == "event loop" else odd_ones_fail
    with bus_for(place) as bus:
        bus.subscribe("number", function, kind=kind_at(place), batch=8, batch_wait=FOR_EVER_S)
        receipts = publish_all(bus, list(range(8)))

        errors = errors_of(receipts)
        assert [type(error) for error in errors] == [type(None), ValueError] * 4
        assert [error.args for error in errors if error is not None] == [(1,), (3,), (5,), (7,)]
        assert [receipt.result() for receipt in receipts[::2]] == [0, 4, 8, 12]
        assert [letter.event for letter in bus.dead_letters] == [1, 3, 5, 7]


@pytest.mark.skipif(not HAS_DASK, reason=NO_DASK)
@pytest.mark.slow
def test_batches_run_on_a_cluster() -> None:
    from procbus import DaskPool

    with cluster(workers=1, threads=1) as address:
        warm_up(address)
        with EventBus([], cpu=DaskPool(address)) as bus:
            bus.subscribe("number", doubled, kind="cpu", batch=8, batch_wait=FOR_EVER_S)
            receipts = publish_all(bus, list(range(20)))

            assert [receipt.result() for receipt in receipts] == [2 * n for n in range(20)]


# Gathering.


def test_full_batch_is_called_at_once_and_the_rest_when_the_bus_is_drained() -> None:
    calls: list[list[int]] = []
    with EventBus([]) as bus:
        bus.subscribe("number", calls.append, batch=4, batch_wait=FOR_EVER_S)
        receipts = [bus.publish("number", number) for number in range(6)]

        assert all(receipt.wait(BOUND_S) for receipt in receipts[:4])
        assert [receipt.done for receipt in receipts[4:]] == [False, False]
        assert receipts[4].deliveries[0].state is DeliveryState.PENDING
        assert (bus.stats().pending, bus.stats().lanes["io"].depth) == (2, 2)
        assert bus.drain(BOUND_S)
    assert calls == [[0, 1, 2, 3], [4, 5]]


def test_event_waits_no_longer_than_batch_wait() -> None:
    with EventBus([]) as bus:
        bus.subscribe("number", doubled, batch=1_000, batch_wait=0.01)

        assert bus.publish("number", 1).result(BOUND_S) == 2
        assert bus.publish("number", 2).result(BOUND_S) == 4


def test_call_without_a_wait_takes_the_events_that_are_there() -> None:
    entered, leave = threading.Event(), threading.Event()
    calls: list[list[int]] = []

    def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        entered.set()
        assert leave.wait(BOUND_S)

    with EventBus([]) as bus:
        bus.subscribe("number", handle, batch=10, concurrency=1)
        bus.publish("number", 0)
        assert entered.wait(BOUND_S)
        for number in range(1, 16):
            bus.publish("number", number)
        leave.set()
    assert calls == [[0], list(range(1, 11)), list(range(11, 16))]


def test_clock_of_a_test_ends_the_wait() -> None:
    calls: list[list[int]] = []
    clock = Clock()
    with InlineBus([], clock=clock) as bus:
        bus.subscribe("number", calls.append, batch=4, batch_wait=5.0)
        for number in range(6):
            bus.publish("number", number)
        assert calls == [[0, 1, 2, 3]]
        clock.advance(5.0)
        assert calls == [[0, 1, 2, 3], [4, 5]]


def test_call_has_one_event_of_each_key_and_keeps_their_order() -> None:
    calls: list[list[tuple[str, int]]] = []
    with EventBus([]) as bus:
        bus.subscribe(
            "number", calls.append, batch=10, batch_wait=FOR_EVER_S, key=lambda pair: pair[0]
        )
        publish_all(bus, [(key, n) for n in range(3) for key in "ab"])
    assert [dict(call) for call in calls] == [{"a": n, "b": n} for n in range(3)]


@pytest.mark.parametrize("on_loop", [False, True])
def test_full_bus_lets_no_event_wait_for_more(on_loop: bool) -> None:
    async def publish_later(bus: EventBus) -> None:
        for number in range(20):
            await bus.apublish("number", number)

    calls: list[list[int]] = []
    with EventBus([], max_pending=6) as bus:
        for name in "ab":
            bus.subscribe("number", calls.append, name=name, batch=50, batch_wait=FOR_EVER_S)
        if on_loop:
            asyncio.run(publish_later(bus))
        else:
            publish_all(bus, list(range(20)))
    assert sorted(number for call in calls for number in call) == sorted([*range(20)] * 2)


def test_events_that_wait_are_cancelled_with_the_bus() -> None:
    bus = EventBus([])
    bus.subscribe("number", doubled, batch=4, batch_wait=FOR_EVER_S)
    receipts = [bus.publish("number", number) for number in range(2)]
    bus.close(cancel=True)

    states = [receipt.deliveries[0].state for receipt in receipts]
    assert states == [DeliveryState.CANCELLED] * 2


# Failures.


def test_answer_of_another_length_fails_the_batch_and_says_so(place: str) -> None:
    def one_result(numbers: list[int]) -> list[int]:
        return numbers[:1]

    async def one_result_later(numbers: list[int]) -> list[int]:
        return numbers[:1]

    function: Any = one_result_later if place == "event loop" else one_result
    with bus_for(place) as bus:
        bus.subscribe("number", function, kind=kind_at(place), batch=3, batch_wait=FOR_EVER_S)
        errors = errors_of(publish_all(bus, [1, 2, 3]))

    assert {type(error) for error in errors} == {ProcbusError}
    assert "was called with 3 events (#1, #2, #3) and returned a list of 1" in str(errors[0])
    assert "one result for each of its events, here 3" in str(errors[0])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda events: "abc", "returned a str"),
        (lambda events: {1: 1, 2: 2, 3: 3}, "returned a dict"),
        (lambda events: 3, "returned a int"),
        (lambda events: (each for each in events), "returned a generator"),
    ],
)
def test_answer_that_is_no_list_fails_the_batch(
    answer: Callable[[list[int]], object], words: str
) -> None:
    with InlineBus([], clock=Clock()) as bus:
        bus.subscribe("number", answer, batch=3, batch_wait=1.0)
        assert words in str(errors_of(publish_all(bus, [1, 2, 3]))[2])


@pytest.mark.parametrize(
    "errors", [{3: ValueError()}, {-1: ValueError()}, {"a": ValueError()}, {0: 1}]
)
def test_index_that_is_no_event_fails_the_batch(errors: Any) -> None:
    def handle(_: list[int]) -> None:
        raise BatchFailed(errors)

    with InlineBus([], clock=Clock()) as bus:
        bus.subscribe("number", handle, batch=3, batch_wait=1.0)
        [error, *_] = errors_of(publish_all(bus, [1, 2, 3]))
    assert "Its keys are indices of the list of events, here 0 to 2" in str(error)
    assert isinstance(error.__cause__ if error else None, BatchFailed)


def test_only_failed_events_are_tried_again() -> None:
    calls: list[list[int]] = []

    def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        if len(calls) == 1:
            raise BatchFailed({1: ValueError("try again")})

    with EventBus([]) as bus:
        bus.subscribe("number", handle, batch=3, batch_wait=FOR_EVER_S, retries=1, backoff=0)
        receipts = publish_all(bus, [1, 2, 3])
        assert errors_of(receipts) == [None] * 3
        assert [receipt.deliveries[0].attempts for receipt in receipts] == [1, 2, 1]
    assert calls == [[1, 2, 3], [2]]


def test_events_that_are_tried_again_keep_their_order() -> None:
    calls: list[list[int]] = []

    def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        if len(calls) == 1:
            raise OSError("locked")

    with EventBus([]) as bus:
        bus.subscribe("number", handle, batch=5, batch_wait=FOR_EVER_S, retries=1, backoff=0.01)
        receipts = publish_all(bus, [1, 2, 3, 4, 5])
        assert errors_of(receipts) == [None] * 5
    assert calls[0] == [1, 2, 3, 4, 5]
    again = [number for call in calls[1:] for number in call]
    assert again == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_call_that_fails_as_a_whole_is_one_line_in_the_log(
    kind: Literal["io", "cpu"], caplog: pytest.LogCaptureFixture
) -> None:
    def handle(numbers: list[int]) -> None:
        raise OSError("locked")

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(
            "number",
            handle,
            kind=kind,
            batch=20,
            batch_wait=FOR_EVER_S,
            retries=1,
            backoff=0.01,
            concurrency=1,
            name="load",
        )
        errors_of(publish_all(bus, list(range(20))))
    said = [each.getMessage() for each in caplog.records if "load" in each.getMessage()]
    retried = [text for text in said if ": attempt 1 of 2 raised (OSError: locked)" in text]
    assert [text.split(":")[0] for text in retried] == ["load with 20 events (#1 to #20)"]
    failed = [text for text in said if "failed with" in text]
    assert 1 <= len(failed) <= 20  # the retries may come in several calls
    assert failed[0].startswith("load failed with ")
    assert "raised, at the last of 2 attempts: OSError: locked" in failed[0]


class CannotTravel(Exception):
    def __init__(self, one: str, two: object) -> None:
        super().__init__(one)
        self.two = two


def raise_odd(numbers: list[int]) -> None:
    raise BatchFailed({1: CannotTravel("no way", threading.Lock())})


def test_error_that_cannot_travel_arrives_as_far_as_it_can() -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", raise_odd, kind="cpu", batch=3, batch_wait=FOR_EVER_S)
        errors = errors_of(publish_all(bus, [1, 2, 3]))
    assert [type(error) for error in errors] == [type(None), CannotTravel, type(None)]
    assert str(errors[1]) == "no way"


def test_event_that_cannot_travel_fails_alone() -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", len_of_each, kind="cpu", batch=20, batch_wait=FOR_EVER_S)
        events: list[Any] = [[number] for number in range(20)]
        events[7] = [threading.Lock()]
        receipts = publish_all(bus, events)
        errors = errors_of(receipts)
        [letter] = bus.dead_letters
    assert [n for n, error in enumerate(errors) if error is not None] == [7]
    assert isinstance(errors[7], SerializationError)
    assert letter.event is events[7]
    assert receipts[6].result() == 1


class Unloadable:
    """Cannot be unpickled in a worker, but for an even number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return loaded, (self.number,)


def loaded(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} cannot be loaded")
    return number


def test_event_that_cannot_be_loaded_fails_alone() -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(Unloadable, doubled_any, kind="cpu", batch=10, batch_wait=FOR_EVER_S)
        receipts = [bus.publish(Unloadable(number)) for number in (0, 2, 3, 4, 6)]
        assert bus.drain(BOUND_S)
        errors = errors_of(receipts)
    assert [n for n, error in enumerate(errors) if error is not None] == [2]
    assert "event #3 could not be loaded in a worker process" in str(errors[2])
    assert receipts[4].result() == 12


def len_of_each(events: list[Any]) -> list[int]:
    return [len(event) for event in events]


def die_of_333(numbers: list[int]) -> list[int]:
    for number in numbers:
        if number == 333:
            os._exit(3)
    return numbers


def locked_at_2(numbers: list[int]) -> list[Any]:
    return [threading.Lock() if number == 2 else number for number in numbers]


def locked_at_2_and_odd_ones_fail(numbers: list[int]) -> None:
    errors = {i: ValueError(number) for i, number in enumerate(numbers) if number % 2}
    raise BatchFailed(errors, [threading.Lock() if n in (1, 2) else n for n in numbers])


def test_result_that_cannot_travel_fails_its_event_alone() -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", locked_at_2, kind="cpu", batch=5)
        receipts = list(bus.stream(range(5), topic="number", ordered=True, batch=5))
    assert [each.has_failure for each in receipts] == [False, False, True, False, False]
    assert [each.result() for each in receipts if not each.has_failure] == [0, 1, 3, 4]
    with pytest.raises(SerializationError, match=r"the result of .* for event #3 cannot") as raised:
        receipts[2].result()
    assert raised.value.__cause__ is None


def test_result_that_cannot_travel_and_failed_events_leave_the_others_alone() -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", locked_at_2_and_odd_ones_fail, kind="cpu", batch=5)
        receipts = list(bus.stream(range(5), topic="number", ordered=True, batch=5))
        errors = [type(each.deliveries[0].exception()) for each in receipts]
    assert errors == [type(None), ValueError, SerializationError, ValueError, type(None)]


def test_events_that_a_call_publishes_go_out_though_one_result_cannot_travel() -> None:
    seen: list[int] = []

    def publish(numbers: list[int]) -> list[Any]:
        current().publish("sum", sum(numbers))
        return locked_at_2(numbers)

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", publish, kind="cpu", batch=5)
        bus.subscribe("sum", seen.append)
        list(bus.stream(range(5), topic="number", batch=5))
    assert seen == [10]


@pytest.mark.parametrize("place", ["io", "cpu"])
def test_array_that_is_a_single_number_fails_the_batch_and_says_so(place: Any) -> None:
    numpy = pytest.importorskip("numpy")

    def total(numbers: list[int]) -> Any:
        return numpy.array(sum(numbers))

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", total, kind=place, batch=3)
        for receipt in bus.stream(range(3), topic="number", batch=3):
            with pytest.raises(ProcbusError, match=r"returned a ndarray: a batch handler returns"):
                receipt.result()


def test_one_deadly_event_among_500_dies_alone() -> None:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("number", die_of_333, kind="cpu", batch=500, batch_wait=FOR_EVER_S)
        receipts = publish_all(bus, list(range(500)))
        [(event, error)] = [(r.event, e) for r in receipts if (e := r.deliveries[0].exception())]
        assert event == 333
        assert isinstance(error, WorkerDied)
        assert error.event_id == receipts[333].id
        stats = bus.stats()
        [of_handler] = stats.handlers.values()
        assert (of_handler.succeeded, of_handler.crashed) == (499, 1)
        assert stats.lanes["cpu"].restarts + stats.lanes["cpu"].workers <= 10


def hang_at_5(numbers: list[int]) -> None:
    while 5 in numbers:
        time.sleep(0.001)


async def hang_at_5_later(numbers: list[int]) -> None:
    while 5 in numbers:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", ["cpu", "async"])
def test_one_event_that_hangs_times_out_alone(kind: str) -> None:
    function: Any = hang_at_5 if kind == "cpu" else hang_at_5_later
    with EventBus([], cpu_workers=1) as bus:
        options: Any = {"kind": "cpu" if kind == "cpu" else "io", "timeout": 0.5}
        bus.subscribe("number", function, batch=8, batch_wait=FOR_EVER_S, **options)
        errors = errors_of(publish_all(bus, list(range(8))))
    assert [n for n, error in enumerate(errors) if error is not None] == [5]
    assert isinstance(errors[5], HandlerTimeout)
    assert errors[5].event_id == 6


def test_call_that_is_late_on_a_thread_fails_each_of_its_events() -> None:
    leave = threading.Event()
    with EventBus([]) as bus:
        bus.subscribe("number", lambda _: leave.wait(BOUND_S), batch=2, batch_wait=1, timeout=0.05)
        errors = errors_of(publish_all(bus, [1, 2]))
        leave.set()
    assert [type(error) for error in errors] == [HandlerTimeout] * 2
    assert [getattr(error, "event_id", 0) for error in errors] == [1, 2]
    assert "(event #2 was in that call, of 2 events (#1, #2))" in str(errors[1])


# The rest of the bus sees single events.


def publish_sum(numbers: list[int]) -> None:
    current().publish("sum", sum(numbers))


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_batch_handler_publishes(kind: Any) -> None:
    sums: list[int] = []
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", publish_sum, kind=kind, batch=3, batch_wait=FOR_EVER_S)
        bus.subscribe("sum", sums.append)
        publish_all(bus, [1, 2, 3])
    assert sums == [6]


def test_listeners_are_told_of_each_event() -> None:
    told: list[tuple[str, int]] = []

    class Ears:
        def started(self, moment: Started) -> None:
            told.append(("started", moment.receipt.event))

        def settled(self, moment: Settled) -> None:
            told.append((moment.outcome.kind.value, moment.receipt.event))

    with EventBus([]) as bus, bus.listen(Ears()):
        bus.subscribe("number", odd_ones_fail, batch=2, batch_wait=FOR_EVER_S)
        publish_all(bus, [0, 1])
    begun, ended = told[:2], sorted(told[2:])
    assert begun == [("started", 0), ("started", 1)]
    assert ended == [(OutcomeKind.RAISED.value, 1), (OutcomeKind.SUCCEEDED.value, 0)]


def test_state_of_an_event_follows_its_call() -> None:
    entered, leave = threading.Event(), threading.Event()

    def handle(numbers: list[int]) -> None:
        current().progress(1, 2)
        entered.set()
        assert leave.wait(BOUND_S)

    with EventBus([]) as bus:
        bus.subscribe("number", handle, batch=2, batch_wait=FOR_EVER_S)
        receipts = [bus.publish("number", number) for number in range(2)]
        assert entered.wait(BOUND_S)
        deliveries = [receipt.deliveries[0] for receipt in receipts]
        try:
            assert [delivery.state for delivery in deliveries] == [DeliveryState.RUNNING] * 2
            assert deliveries[1].progress is not None
            assert bus.stats().handlers[deliveries[0].handler.name].running == 2
            assert bus.stats().pending == 2
        finally:
            leave.set()
        eventually(lambda: receipts[1].done)
        shares = [delivery.run_s for delivery in deliveries]
        assert shares[0] == pytest.approx(shares[1])


def test_journal_keeps_the_events_that_were_not_finished(tmp_path: Path) -> None:
    journal = tmp_path / "bus.db"

    def handle(numbers: list[int]) -> None:
        assert 0 in numbers

    bus = EventBus([], journal=journal)
    bus.subscribe("number", handle, name="h", batch=2, batch_wait=FOR_EVER_S)
    receipts = [bus.publish("number", number) for number in range(3)]
    assert receipts[1].wait(BOUND_S)
    bus.close(cancel=True)
    seen: list[list[int]] = []
    with EventBus([], journal=journal) as bus:
        bus.subscribe("number", seen.append, name="h", batch=2, batch_wait=FOR_EVER_S)
    assert seen == [[2]]


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_events_of_a_call_that_was_killed_with_the_script_run_again(
    kind: Any, tmp_path: Path
) -> None:
    marker = tmp_path / "entered"
    path = killed(
        tmp_path / "bus.db",
        f"""
        import time

        def hold(words: list[str]) -> None:
            if words[0] != "first":
                open({str(marker)!r}, "w").close()
                threading.Event().wait(60)

        bus.subscribe("word", hold, name="words", kind={kind!r}, batch=4, batch_wait=3600)
        firsts = [bus.publish("word", "first") for _ in range(4)]
        assert all(receipt.wait(60) for receipt in firsts)
        for number in range(6):
            bus.publish("word", str(number))
        while not os.path.exists({str(marker)!r}):
            time.sleep(0.01)
        """,
    )
    seen: list[str] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe("word", seen.extend, name="words", batch=4, batch_wait=FOR_EVER_S)
    assert seen == [str(number) for number in range(6)]


# Streams.


@pytest.mark.parametrize("source", [list, iter])
def test_stream_gives_batch_handlers_its_events_in_batches(source: Any) -> None:
    calls: list[list[int]] = []
    with EventBus([]) as bus:
        bus.subscribe("number", calls.append, batch=100, batch_wait=FOR_EVER_S, concurrency=1)
        receipts = list(bus.stream(source(range(25)), topic="number", batch=10))
    assert sorted(receipt.event for receipt in receipts) == list(range(25))
    assert calls == [list(range(10)), list(range(10, 20)), list(range(20, 25))]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("on_loop", [False, True])
def test_stream_that_waits_for_room_lets_no_event_wait_for_more(
    ordered: bool, on_loop: bool
) -> None:
    async def all_results(bus: EventBus) -> list[int]:
        receipts = bus.astream(range(20), topic="number", ordered=ordered)
        return [receipt.result() async for receipt in receipts]

    with EventBus([], max_pending=5) as bus:
        bus.subscribe("number", doubled, batch=100, batch_wait=FOR_EVER_S)
        if on_loop:
            results = asyncio.run(all_results(bus))
        else:
            receipts = bus.stream(range(20), topic="number", ordered=ordered)
            results = [receipt.result() for receipt in receipts]
    assert sorted(results) == list(range(0, 40, 2))


def test_end_of_a_stream_does_not_wait_for_more_events() -> None:
    with EventBus([]) as bus:
        bus.subscribe("number", doubled, batch=10, batch_wait=FOR_EVER_S)
        results = [r.result() for r in bus.stream(range(15), topic="number", ordered=True)]
    assert results == [2 * number for number in range(15)]


def test_batch_of_a_stream_is_checked() -> None:
    with EventBus([]) as bus, pytest.raises(OptionError, match="batch must be a whole number"):
        bus.stream([1], batch=0)
    with EventBus([]) as bus, pytest.raises(OptionError, match="batch must be a whole number"):
        bus.astream([1], batch=0)


@pytest.mark.parametrize("ordered", [True, False])
def test_asynchronous_stream_gives_batch_handlers_its_events_in_batches(ordered: bool) -> None:
    calls: list[list[int]] = []

    async def streamed() -> list[int]:
        async with EventBus([]) as bus:
            bus.subscribe("number", calls.append, batch=100, batch_wait=FOR_EVER_S, concurrency=1)
            receipts = bus.astream(range(25), topic="number", batch=10, ordered=ordered)
            return [receipt.event async for receipt in receipts]

    assert sorted(asyncio.run(streamed())) == list(range(25))
    assert calls == [list(range(10)), list(range(10, 20)), list(range(20, 25))]


def test_end_of_an_asynchronous_stream_does_not_wait_for_more_events() -> None:
    async def streamed() -> list[int]:
        async with EventBus([]) as bus:
            bus.subscribe("number", doubled, batch=10, batch_wait=FOR_EVER_S)
            receipts = bus.astream(range(15), topic="number", ordered=True)
            return [receipt.result() async for receipt in receipts]

    assert asyncio.run(streamed()) == [2 * number for number in range(15)]
