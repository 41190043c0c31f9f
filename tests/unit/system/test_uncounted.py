# SPDX-License-Identifier: MIT
"""Uses of the parts of a bus are not counted without a GIL; uses of your objects always are."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest

from procbus import EventBus
from procbus.core.gil import gil_is_on
from procbus.core.locks import Lock
from procbus.system.uncounted import leave_uncounted

uncounts = pytest.mark.skipif(
    gil_is_on() or sys.version_info < (3, 14), reason="this Python counts all uses"
)

#: Python shows a number above this as the count of an object whose uses it leaves uncounted.
MANY = 1 << 32


class Owned:
    """An object of a user."""

    def method(self) -> None: ...


@uncounts
def test_uses_of_an_object_and_of_our_methods_in_it_are_not_counted() -> None:
    class Owner:
        def __init__(self) -> None:
            self.take = Lock().acquire
            self.theirs = Owned()
            self.call = self.theirs.method

    owner = Owner()
    leave_uncounted(owner)

    counts = [sys.getrefcount(each) for each in (owner, owner.take, owner.theirs, owner.call)]
    assert [count > MANY for count in counts] == [True, True, False, False]


@uncounts
def test_a_bus_leaves_its_parts_uncounted_before_its_first_event(bus: EventBus) -> None:
    bus.subscribe(object, lambda _: None, kind="io")
    bus.publish(object())
    bus.drain()

    parts = bus._parts  # noqa: SLF001 - to see how Python treats them
    used = parts.dispatcher, parts.admission, parts.lanes.io.queue, *parts.subscriptions.all()
    assert all(sys.getrefcount(part) > MANY for part in used)


class Odd(type):
    """A metaclass that says nothing of its classes."""

    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise RuntimeError

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError

    __hash__ = type.__hash__


def test_a_handler_may_be_an_object_of_an_odd_class() -> None:
    class Handler(metaclass=Odd):
        def __call__(self, event: int) -> int:
            return event

    class Numbered(Handler):
        __module__ = 5  # type: ignore[assignment]

    for handler in (Handler(), Numbered()):
        owner = {"handler": handler}
        leave_uncounted(owner)
        assert sys.getrefcount(handler) < MANY


@pytest.mark.skipif(not gil_is_on(), reason="this Python has no GIL")
def test_with_a_gil_all_uses_are_counted() -> None:
    owned = Owned()
    freed = weakref.ref(owned)
    leave_uncounted(owned)

    del owned
    assert freed() is None


def test_an_event_and_its_handler_are_freed_with_their_bus() -> None:
    class Event: ...

    class Handler:
        def __call__(self, event: Event) -> None: ...

    handler, event = Handler(), Event()
    freed = weakref.ref(handler), weakref.ref(event)
    with EventBus([]) as bus:
        bus.subscribe(Event, handler, kind="io")
        bus.publish(event).result()

    del bus, handler, event
    gc.collect()
    assert [each() for each in freed] == [None, None]
