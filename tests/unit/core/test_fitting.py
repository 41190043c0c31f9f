"""The annotation of a handler must not exclude all events of its topic."""

import functools
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NewType, Protocol, TypedDict, TypeVar

import pytest

from procbus.core.errors import SubscriptionError
from procbus.core.handler import make_handler


class Event:
    pass


class PageEvent(Event):
    pass


class Other:
    pass


class Mixed(Other):
    pass


class Mixer:
    pass


class BothOfThem(Mixed, Mixer):
    pass


class Named(Protocol):
    name: str


class Base(ABC):  # noqa: B024 - a base class without abstract methods is the case
    pass


class Shape(ABC):
    @abstractmethod
    def area(self) -> float: ...


class Row(TypedDict):
    id: int


UserId = NewType("UserId", int)
AnEvent = TypeVar("AnEvent", bound=Event)
Text = TypeVar("Text", str, bytes)
Free = TypeVar("Free")


@dataclass
class Box(Generic[Free]):
    item: Free


def taking(annotation: object) -> Callable[[Any], None]:
    def handle(event: Any) -> None: ...

    handle.__annotations__["event"] = annotation
    return handle


FITTING = [
    (Event, Event),
    (Event, PageEvent),  # it may take only some
    (PageEvent, Event),
    (Event, object),
    (object, Event),
    (Event, Any),
    (Event, "Event"),
    (Event, "NotDefinedAnywhere"),
    (Event, Event | None),
    (Event, str | PageEvent),
    (Event, Annotated[Event, "doc"]),
    (bool, int),
    (int, bool),
    (int, float),
    (int, complex),
    (bytearray, bytes),
    (int, UserId),
    (int, numbers.Number),
    (str, Literal["a", "b"]),
    (PageEvent, AnEvent),
    (str, Text),
    (int, Free),
    (Other, Named),
    (Other, Shape),
    (Shape, Other),
    (Other, Iterable[int]),
    (Mixed, Mixer),  # BothOfThem is both
    (dict, Row),
    (list, list[int]),
    (list, Sequence[int]),
    (Box, Box[int]),
    (tuple, tuple[int, str]),
    (type, type[Event]),
    ((Event, "page.new"), Event),
    ("page.new", Event),
]


@pytest.mark.parametrize(("topic", "annotation"), FITTING, ids=str)
def test_an_annotation_that_may_fit_is_accepted(topic: object, annotation: object):
    assert make_handler(taking(annotation), topic).topics


MISFITS = [
    (int, Event),
    (Event, int),
    (Event, "Other"),
    (float, int),
    (str, bytes),
    (Event, Other | str),
    (Event, Annotated[Other, "doc"]),
    (str, UserId),
    (int, Literal["a", "b"]),
    (Other, AnEvent),
    (int, Text),
    (int, Row),
    (int, list[int]),
    (Other, Base),
    (Event, None),
    ((Event, Other), Event),
    ((Other, "page.new"), Event),
]


@pytest.mark.parametrize(("topic", "annotation"), MISFITS, ids=str)
def test_an_annotation_that_cannot_fit_is_refused(topic: object, annotation: object):
    with pytest.raises(SubscriptionError, match="it is subscribed to"):
        make_handler(taking(annotation), topic)


def test_the_refusal_says_what_to_change():
    with pytest.raises(SubscriptionError) as caught:
        make_handler(taking(Event), (int, "page.new"))
    assert str(caught.value) == (
        f"handler {__name__}.taking.<locals>.handle: it is subscribed to int, but its first "
        "parameter is annotated Event, which no int can be; to get each Event, leave the topic "
        "out; to get each int, annotate the parameter int"
    )


@pytest.mark.parametrize(
    "annotation", [list[Event], Sequence[PageEvent], list, Iterable, list["Event"], Any, object]
)
def test_the_annotation_of_a_batch_handler_is_that_of_a_list(annotation: object):
    assert make_handler(taking(annotation), Event, batch=5).batch == 5


@pytest.mark.parametrize(
    ("annotation", "advice"),
    [
        (list[Other], r"annotate the parameter list\[.*Event\]"),
        (Event, "annotate it as a list of the class of its events, or leave batch out"),
        (dict[str, Event], "batch= gives it a list"),
    ],
)
def test_a_batch_handler_of_other_events_is_refused(annotation: object, advice: str):
    with pytest.raises(SubscriptionError, match=advice):
        make_handler(taking(annotation), Event, batch=5)


def test_a_handler_with_where_may_choose_events_that_no_class_tells():
    handler = make_handler(taking(Other), Event, where=lambda event: isinstance(event, Other))
    assert handler.topics == (Event,)


def test_a_wrapper_may_take_other_events_than_its_function():
    def page_of(function: Callable[[Event], None]) -> Callable[[str], None]:
        @functools.wraps(function)
        def wrapper(text: Any) -> None:
            function(Event())

        return wrapper

    assert make_handler(page_of(taking(Event)), str).topics == (str,)
    assert make_handler(functools.lru_cache(taking(Event)), str).topics == (str,)


def test_methods_partials_and_callable_objects_are_judged_too():
    class Store:
        def put(self, event: Event) -> None: ...

        def __call__(self, event: Event) -> None: ...

    def store(event: Event, times: int = 1) -> None: ...

    for function in (Store().put, Store(), functools.partial(store, times=2)):
        assert make_handler(function, PageEvent).topics == (PageEvent,)
        with pytest.raises(SubscriptionError, match="it is subscribed to int"):
            make_handler(function, int)


def test_a_class_that_was_defined_anew_still_fits():
    old, new = (type("Event", (), {"__module__": __name__}) for _ in range(2))
    below = type("Below", (new,), {})
    assert make_handler(taking(old), new).topics == (new,)
    assert make_handler(taking(old), below).topics == (below,)


def test_classes_that_refuse_to_be_compared_fit():
    class Meta(type):
        def __subclasscheck__(cls, other: type) -> bool:
            if other is not object:
                raise RuntimeError("no")
            return False

    class Strange(metaclass=Meta):
        pass

    assert make_handler(taking(Strange), Event).topics == (Event,)
