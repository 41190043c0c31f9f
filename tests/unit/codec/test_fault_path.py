# SPDX-License-Identifier: MIT
"""Finding the object that cannot be pickled, and its path."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import EventBus, executor
from procbus.codec.fault_path import check_travels, event_fault, path_of_fault
from procbus.core.errors import SerializationError

LOCK = threading.Lock()


@dataclass
class Row:
    number: int
    lock: Any = None


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list)
    by_name: dict[Any, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Slotted:
    inner: Any


class Private:
    __slots__ = ("__hidden",)

    def __init__(self, hidden: Any) -> None:
        self.__hidden = hidden


class Stubborn:
    """Nothing in it is at fault but itself."""

    number = 1

    def __reduce__(self) -> Any:
        raise TypeError("never")


class WithoutRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    ("event", "path"),
    [
        (LOCK, "event"),
        ([1, LOCK], "event[1]"),
        ((LOCK,), "event[0]"),
        ({"a": {"b": LOCK}}, "event['a']['b']"),
        ({LOCK: 1}, None),
        ({1, LOCK}, None),
        (Row(1, LOCK), "event.lock"),
        (Table([Row(0), Row(1), Row(2, LOCK)]), "event.rows[2].lock"),
        (Table([], {"x": [Slotted(Row(1, LOCK))]}), "event.by_name['x'][0].inner.lock"),
        (Private(LOCK), "event._Private__hidden"),
        (Stubborn(), "event"),
        ([Stubborn()], "event[0]"),
        (functools.partial(print, LOCK), None),
        ("fine", ""),
        ([1, "fine"], ""),
        (Row(1), ""),
    ],
)
def test_the_path_leads_to_the_innermost_part_at_fault(event, path):
    found = path_of_fault(event, "event")
    if path is None:
        assert found.startswith("event")
    else:
        assert found == path


def test_search_through_cycles_ends():
    row = Row(1)
    row.lock = [row, LOCK]
    assert path_of_fault(row, "event") == "event.lock[1]"


def test_search_through_deep_nesting_ends():
    event: Any = LOCK
    for _ in range(50):
        event = [event]
    assert path_of_fault(event, "event").startswith("event[0][0]")


@pytest.mark.parametrize(
    "event",
    [
        {WithoutRepr(): LOCK},
        {WithoutRepr(), LOCK},
        [WithoutRepr(), LOCK],
        Row(1, [WithoutRepr(), LOCK]),
    ],
)
def test_objects_whose_repr_fails_do_not_stop_the_search(event):
    assert path_of_fault(event, "event").startswith("event")


class BrokenProperty:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = LOCK

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no dict")


def test_objects_whose_attributes_cannot_be_read_do_not_stop_the_search():
    assert path_of_fault([BrokenProperty()], "event") == "event[0].lock"


def test_a_long_key_does_not_make_a_long_path():
    assert len(path_of_fault({"x" * 100_000: LOCK}, "event")) < 1000


def test_error_of_an_event_names_the_remedy():
    error = event_fault("shop.store", 7, Row(1, LOCK), TypeError("cannot pickle"))
    assert error.path == "event.lock"
    assert str(error) == (
        "event #7 (Row) cannot travel to a worker process for shop.store because of event.lock: "
        'TypeError: cannot pickle. Publish plain data, or take the event with a kind="io" handler'
    )


def test_handlers_that_can_travel_are_fine():
    offset = 3
    check_travels(lambda e: e + offset, "compute")
    check_travels(with_lock, "compute")
    check_travels(functools.partial(max, 1), "compute")


def with_lock() -> Any:
    lock = threading.Lock()
    return lambda event: lock.locked()


def with_default() -> Any:
    return lambda event, lock=threading.Lock(): lock.locked()  # noqa: B008 - one lock is the point


def with_deeper_lock() -> Any:
    tables = {"a": Row(1, threading.Lock())}
    return lambda event: tables[event]


class Method:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def handle(self, event: Any) -> None: ...


def in_helper() -> Any:
    lock = threading.Lock()

    def helper() -> bool:
        return lock.locked()

    return lambda event: helper()


@pytest.mark.parametrize(
    ("function", "path"),
    [
        (with_lock(), "compute, closure variable 'lock'"),
        (with_default(), "compute, default argument 0"),
        (with_deeper_lock(), "compute, closure variable 'tables'['a'].lock"),
        (in_helper(), "compute, closure variable 'helper', closure variable 'lock'"),
        (Method().handle, "compute.__self__.lock"),
        (functools.partial(with_lock(), lock=threading.Lock()), None),
    ],
)
def test_a_handler_that_cannot_travel_names_the_variable_at_fault(function, path):
    with pytest.raises(SerializationError, match="cpu handler compute cannot travel") as caught:
        check_travels(function, "compute")
    if path is not None:
        assert caught.value.path == path
        assert f"because of {path}:" in str(caught.value)
    assert caught.value.__cause__ is None, "the message has it"


def test_a_keyword_default_at_fault_is_named():
    def compute(event: Any, *, lock: Any = threading.Lock()) -> None: ...  # noqa: B008 - as above

    with pytest.raises(SerializationError) as caught:
        check_travels(compute, "compute")
    assert caught.value.path == "compute, default of argument 'lock'"


def test_a_variable_that_is_not_assigned_yet_does_not_stop_the_search():
    lock = threading.Lock()

    def compute(event: Any) -> None:
        with lock:
            later()

    with pytest.raises(SerializationError) as caught:
        check_travels(compute, "compute")
    assert caught.value.path == "compute, closure variable 'lock'"

    def later() -> None: ...


def test_a_global_at_fault_is_named():
    namespace: dict[str, Any] = {"__name__": "__main__", "lock": LOCK}
    exec("def compute(event):\n    return lock", namespace)
    with pytest.raises(SerializationError) as caught:
        check_travels(namespace["compute"], "compute")
    assert caught.value.path == "compute, global variable 'lock'"


@pytest.mark.parametrize("make", [lambda: EventBus([]), lambda: executor("io")])
def test_the_path_of_a_bus_or_executor_shows_nothing_of_its_inside(make: Callable[[], Any]) -> None:
    with make() as bus:
        namespace: dict[str, Any] = {"__name__": "__main__", "bus": bus}
        exec("def compute(event):\n    bus.publish(event)", namespace)
        with pytest.raises(SerializationError, match=r"current\(\)\.publish\(") as caught:
            check_travels(namespace["compute"], "compute")
        assert caught.value.path == "compute, global variable 'bus'"
        assert "worker_init" not in str(caught.value)


NESTS = st.lists(st.sampled_from(["list", "dict", "row", "slot", "tuple"]), max_size=8)


@given(NESTS)
def test_the_path_can_be_followed_to_the_fault(nests):
    event: Any = LOCK
    for nest in nests:
        event = {
            "list": [0, event],
            "dict": {"k": event},
            "row": Row(1, event),
            "slot": Slotted(event),
            "tuple": (event, 1),
        }[nest]
    path = path_of_fault(event, "event")
    assert eval(path, {"event": event}) is LOCK
