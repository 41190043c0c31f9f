"""Events and results of 1 to 32 KB arrive whole, in order and unchanged, by each road."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from procbus.core.delivery import Delivery
from procbus.pool.child.loop import LEFT_BYTES
from procbus.pool.interface import Ended, LastWords, Message, Worker, WorkerGone
from procbus.pool.logbook import CAPACITY, SEGMENTS
from procbus.pool.memory.batches import LEAST_BYTES, SLOT_BYTES
from procbus.pool.memory.events import LARGE
from procbus.pool.parent_end import BATCH_BYTES
from tests.conformance import handlers
from tests.conformance.drive import deliveries, ends_of, give, run, take_reports, values

#: Offsets of sizes around each border. They allow for the bytes that pickle and the head of an end
#: add, so that one of the sizes crosses the border.
AROUND = (-40, -20, -16, -11, -10, -1, 0, 1)
BORDERS = (LEAST_BYTES, LEFT_BYTES, LARGE, BATCH_BYTES, CAPACITY)

_batches = itertools.count(1_000_000)


def some(size: int, number: int = 0) -> bytes:
    """Content that identifies its event."""
    return (b"%09d" % number * (size // 9 + 1))[:size]


def run_all(worker: Worker, batch: Sequence[Delivery]) -> list[Any]:
    """Run a batch like a companion: one message ahead, and the rest sent again."""
    rest = list(batch)
    under_way: list[Message] = []
    found: list[Any] = []
    while rest or under_way:
        if rest and len(under_way) < 2:
            message = worker.prepare(next(_batches), rest)
            assert message.deliveries == rest[: len(message.deliveries)]
            assert message.deliveries or under_way
            rest = list(message.rest)
            if message.deliveries:
                worker.offer(message)
                if under_way and not worker.fits_ahead(message):
                    found += values(take_reports(worker, under_way.pop()))
                worker.send(message)
                under_way.append(message)
                continue
        found += values(take_reports(worker, under_way.pop(0)))
    return found


@pytest.mark.parametrize("border", [16, *BORDERS])
def test_sizes_on_both_sides_of_each_border_go_there_and_back(worker: Worker, border: int) -> None:
    sizes = [0, 1, *(border + more for more in AROUND if border + more > 0), 2 * border]
    for kind in (bytes, bytearray, str):
        events: list[Any] = [
            some(size).decode() if kind is str else kind(some(size, at))
            for at, size in enumerate(sizes)
        ]
        assert run_all(worker, deliveries(handlers.echo, *events)) == events


@pytest.mark.parametrize("size", [100, 1_000, 16_000, 31_000])
def test_batch_too_large_for_a_message_goes_in_several(worker: Worker, size: int) -> None:
    events = [some(size, number) for number in range(1_000 if size < 16_000 else 300)]
    assert run_all(worker, deliveries(handlers.echo, *events)) == events


def test_events_of_all_sizes_and_kinds_are_mixed_in_one_stream(worker: Worker) -> None:
    sizes = [0, 5, 200, 3_000, 9_000, 31_000, 33_000, 60_000]
    events: list[Any] = []
    for number in range(200):
        size = sizes[number * 7 % len(sizes)]
        events += [number, some(size, number), {"text": some(size // 4, number).decode()}, None]
    assert run_all(worker, deliveries(handlers.echo, *events)) == events


def test_no_message_has_more_bytes_than_its_road_can_take(coding_worker: Worker) -> None:
    batch = deliveries(handlers.size_of, *(some(31_000, number) for number in range(300)))

    message = give(coding_worker, batch)

    held = 31_000 * len(message.deliveries)
    assert BATCH_BYTES // 2 < held <= SLOT_BYTES
    assert [*message.deliveries, *message.rest] == batch
    assert len(values(take_reports(coding_worker, message))) == len(message.deliveries)


def test_a_message_that_is_never_sent_gives_its_memory_to_the_next(worker: Worker) -> None:
    first = give(worker, deliveries(handlers.echo, *(some(20_000, n) for n in range(20))))
    for number in range(5):
        worker.prepare(
            next(_batches), deliveries(handlers.echo, *(some(20_000, 50 + number) for _ in "abc"))
        )
    second = give(worker, deliveries(handlers.echo, *(some(20_000, n) for n in range(20, 40))))
    if not first.rest and not second.rest:  # else it has the pipe alone
        assert values(take_reports(worker, first)) == [some(20_000, n) for n in range(20)]
        assert values(take_reports(worker, second)) == [some(20_000, n) for n in range(20, 40)]


def test_parts_of_an_event_that_a_handler_keeps_never_change(worker: Worker) -> None:
    """The memory that it came in is used again."""
    handlers.kept.clear()
    sent = [some(20_000, number) for number in range(3)]
    for event in sent:
        (found,) = values(run(worker, deliveries(handlers.keep_and_tell, event)))
        run_all(worker, deliveries(handlers.size_of, *(some(20_000, 99) for _ in range(20))))
    handlers.kept.clear()
    assert found == sent


def test_an_event_that_cannot_be_loaded_fails_alone_among_others(coding_worker: Worker) -> None:
    events = [some(9_000, 1), handlers.FailsToLoad(some(9_000, 2)), some(9_000, 3)]
    ends = run(coding_worker, deliveries(handlers.size_of, *events))
    assert [type(outcome.error).__name__ for outcome, _ in ends] == [
        "NoneType",
        "SerializationError",
        "NoneType",
    ]


def test_a_result_that_cannot_be_loaded_fails_alone_among_others(coding_worker: Worker) -> None:
    ends = run(coding_worker, deliveries(handlers.odd_ones_fail_to_load, *range(6)))
    assert [outcome.error is None for outcome, _ in ends] == [True, False] * 3
    assert [len(outcome.value) for outcome, _ in ends[::2]] == [9_000] * 3


def test_taking_back_leaves_the_memory_to_the_next_batches(worker: Worker) -> None:
    for number in range(4):
        batch = deliveries(handlers.echo, *(some(15_000, number * 100 + n) for n in range(40)))
        message = give(worker, batch)
        taken = worker.take_back(len(message.deliveries))
        ends = take_reports(worker, message)
        sent = len(message.deliveries)
        # On another machine it gives back more than it says at once.
        assert sent - taken >= len(ends)
        assert values(ends) == [some(15_000, number * 100 + n) for n in range(len(ends))]


def _until_its_death(worker: Worker) -> tuple[list[Ended], LastWords]:
    ends: list[Ended] = []
    while True:
        try:
            ends += ends_of(worker.receive(), worker)
        except WorkerGone as gone:
            return ends, gone.last_words


@pytest.mark.parametrize("results", [10, 60, 400])
def test_results_that_a_worker_had_before_it_died_are_all_read(
    process_worker: Worker, results: int
) -> None:
    """Some are in the pipe, some are left in the logbook, and some are not reported yet."""
    worker = process_worker
    message = give(worker, deliveries(handlers.sized_or_exit, *([12_000] * results), "die"))
    told = len(message.deliveries)
    ends, words = _until_its_death(worker)
    assert words.batch == message.batch
    assert values([*ends, *words.ends]) == [bytes(12_000)] * min(told, results)
    assert words.ran_s is not None


def test_results_wait_for_a_parent_that_does_not_read(worker: Worker) -> None:
    """More than the logbook holds twice: the worker waits, and nothing is lost or out of order."""
    count = 3 * SEGMENTS * CAPACITY // 16_000
    first = give(worker, deliveries(handlers.numbered, *range(count)))
    second = worker.prepare(next(_batches), deliveries(handlers.numbered, *range(count, 2 * count)))
    worker.offer(second)
    assert worker.fits_ahead(second)
    worker.send(second)
    found = values(take_reports(worker, first)) + values(take_reports(worker, second))
    assert found == [some(16_000, number) for number in range(2 * count)]
