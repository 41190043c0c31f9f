# SPDX-License-Identifier: MIT
"""Ends of deliveries as a worker lays them out, read as the parent does."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from procbus.codec.encoder import Encoder, decode
from procbus.pool.child.loop import Ends
from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.results import ResultReader
from procbus.pool.memory.worker_side import WorkerMemory
from procbus.pool.wire import REST, End, Ending, each_end

LARGE = 1000
NUMBER = 7


Rooms = tuple[EventMemory, ResultReader]


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    events = EventMemory(1 << 20)
    results = ResultReader(events, 1)
    yield events, results
    results.close()
    events.close()


def ends_in(rooms: Rooms, least_result: int = 0) -> Ends:
    """The memory of a worker, whose mappings go when the test drops it, as with its process."""
    events, results = rooms
    memory = WorkerMemory(events.room, results.room, LARGE, least_result=least_result)
    return Ends(Encoder(NUMBER, LARGE), memory)


def read(data: bytes) -> End:
    [end] = each_end(data, lambda *_: None)
    return end


def failure(end: End) -> tuple[Ending, Any, int]:
    ending, value, dropped = decode(end[2])
    return Ending(ending), value, dropped


def test_result_alone_is_reported_as_a_plain_success(rooms: Rooms) -> None:
    data, ended_at = ends_in(rooms).succeeded([1, 2], [], 1.0, 2.0)
    started_at, told_at, frame, alone, place, _ = read(data)

    assert (started_at, told_at, ended_at) == (1.0, 2.0, 2.0)
    assert alone
    assert decode(frame) == [1, 2]
    assert place is None


def test_published_events_go_with_the_result(rooms: Rooms) -> None:
    data, _ = ends_in(rooms).succeeded(None, [("words", 1)], 1.0, 2.0)
    _, _, frame, alone, _, _ = read(data)

    assert not alone
    assert tuple(decode(frame)) == (Ending.SUCCEEDED, None, [("words", 1)])


@pytest.mark.parametrize("value", [b"x" * LARGE, [b"x" * LARGE]], ids=["as it is", "pickled"])
def test_a_large_result_lies_in_shared_memory(rooms: Rooms, value: Any) -> None:
    _, _, frame, _, place, _ = read(ends_in(rooms).succeeded(value, [], 1.0, 2.0)[0])

    assert frame == REST
    assert place is not None


@pytest.mark.parametrize("size", [LARGE, 2 * LARGE])
@pytest.mark.parametrize("make", [bytes, lambda size: [bytes(size)]], ids=["as it is", "pickled"])
def test_result_without_buffers_gets_a_block_only_where_it_has_to(
    rooms: Rooms, make: Callable[[int], Any], size: int
) -> None:
    value = make(size)
    end = ends_in(rooms, least_result=2 * LARGE).succeeded(value, [], 1.0, 2.0)[0]
    _, _, frame, _, place, _ = read(end)

    assert (place is not None) == (size == 2 * LARGE)
    if place is None:
        assert decode(frame) == value


def test_a_result_that_cannot_travel_is_a_failure_that_says_where_the_fault_sits(
    rooms: Rooms,
) -> None:
    data, ended_at = ends_in(rooms).succeeded([threading.Lock()], [(None, 1), (None, 2)], 1.0, 2.0)
    ending, (travelling, summary, traceback, path, *_), dropped = failure(read(data))

    assert ending is Ending.NO_RESULT
    assert travelling is None
    assert "TypeError" in summary
    assert traceback == "", "no frame of it is the user's"
    assert path == "result[0]"
    assert dropped == 2
    assert ended_at > 2.0, "it ended when that was known"


def test_an_exception_of_a_handler_travels_as_itself(rooms: Rooms) -> None:
    data, _ = ends_in(rooms).failed(Ending.RAISED, raised(ValueError("no")), 1.0, 3)
    ending, (travelling, summary, traceback, *_), dropped = failure(read(data))

    assert ending is Ending.RAISED
    assert isinstance(decode(travelling), ValueError)
    assert summary == "ValueError: no"
    assert traceback.endswith("ValueError: no\n")
    assert dropped == 3


class Composed(Exception):
    """Its class cannot be called with its `args`."""

    def __init__(self, one: int, *, other: int) -> None:
        super().__init__(f"{one} and {other}")
        self.other = other


class Locked(Exception):
    def __init__(self) -> None:
        super().__init__("locked", threading.Lock())
        self.number = 5
        self.lock = threading.Lock()


def test_exception_arrives_unchanged_for_any_signature_of_its_class(rooms: Rooms) -> None:
    error = raised(Composed(1, other=2))
    error.add_note("a note")
    data, _ = ends_in(rooms).failed(Ending.RAISED, error, 1.0, 0)
    _, (travelling, summary, *_), _ = failure(read(data))
    arrived = decode(travelling)

    assert type(arrived) is Composed
    assert (str(arrived), arrived.args, arrived.other) == ("1 and 2", ("1 and 2",), 2)
    assert arrived.__notes__ == ["a note"]
    assert summary == "Composed: 1 and 2"


def test_a_part_of_an_exception_that_cannot_travel_stays_behind_and_a_note_says_so(
    rooms: Rooms,
) -> None:
    data, _ = ends_in(rooms).failed(Ending.RAISED, raised(Locked()), 1.0, 0)
    arrived = decode(failure(read(data))[1][0])

    assert type(arrived) is Locked
    assert arrived.number == 5
    assert not hasattr(arrived, "lock")
    assert arrived.args[0] == "locked"
    assert "unlocked _thread.lock object" in arrived.args[1]
    assert arrived.__notes__ == ["left behind in the worker, since it cannot travel: lock, args[1]"]


def test_exception_whose_class_cannot_travel_arrives_as_text_and_bases(rooms: Rooms) -> None:
    class Rooted(KeyError):
        lock = threading.Lock()

    data, _ = ends_in(rooms).failed(Ending.RAISED, raised(Rooted("gone")), 1.0, 0)
    _, (travelling, summary, _, _, _, kinds), _ = failure(read(data))

    assert travelling is None
    assert summary == "Rooted: 'gone'"
    assert kinds[0].endswith(".Rooted")
    assert kinds[1:4] == ("builtins.KeyError", "builtins.LookupError", "builtins.Exception")


def test_name_of_the_missing_object_is_reported(rooms: Rooms) -> None:
    error = raised(ModuleNotFoundError("No module named 'gone'", name="gone"))
    _, (*_, missing, _), _ = failure(read(ends_in(rooms).failed(Ending.NO_EVENT, error, 1.0, 0)[0]))

    assert missing == "gone"


def raised(error: Exception) -> Exception:
    """The exception with a traceback, as one that was caught."""
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - whatever the test gave
        return caught
