"""Events in the head of a batch: small numbers and strings, and plain instances of them."""

from __future__ import annotations

import copyreg
import enum
import pickle
from abc import ABC
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import pytest

from procbus.codec.encoder import PARENT, Encoder, define_class
from procbus.codec.in_head import MOST_ATTRIBUTES, Maker, Shapes, size_in_head

T = TypeVar("T")


class Number(int):
    pass


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize("event", [0, -(2**61), 1.5, True, None, "", "ä" * 200])
def test_a_small_number_or_string_fits_into_the_head(event: object) -> None:
    assert size_in_head(event) > 0


@pytest.mark.parametrize("event", [2**62, "a" * 201, b"", (), [1], Number(1), int, 1j, Color.RED])
def test_anything_else_travels_by_itself(event: object) -> None:
    assert size_in_head(event) == 0


@dataclass
class Order:
    number: int
    customer: str
    total: float | None = None


@dataclass(frozen=True)
class Frozen:
    number: int
    customer: str


class Plain:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment] # it is not needed


class Abstract(ABC, Plain):
    pass


class Of(Plain, Generic[T]):
    pass


class Dynamic(Plain):
    #: Its value is not in the instance.
    kind = "dynamic"

    @property
    def double(self) -> int:
        return 2 * int(vars(self)["single"])


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(PARENT)


@pytest.fixture
def shapes(encoder: Encoder) -> Shapes:
    return Shapes(encoder.encode_whole)


def made(shapes: Shapes, event: Any) -> Any:
    """The event that a worker makes; None if it is not in the head."""
    taken = shapes.take(event)
    if taken is None:
        return None
    shape, values, size = taken
    assert size > len(repr(values)) // 3
    found, again = pickle.loads(pickle.dumps((shapes.found[shape], values)))
    return Maker(found)(again)


@pytest.mark.parametrize(
    "event",
    [
        Order(1, "somebody", 1.5),
        Order(-1, "", None),
        Frozen(2, "ä" * 200),
        Plain(a=True),
        Plain(**{f"a{number}": number for number in range(MOST_ATTRIBUTES)}),
        Abstract(one=1),
        Of(one=1),
        Dynamic(single=2, double=3),
    ],
)
def test_plain_instance_travels_as_its_values(shapes: Shapes, event: Any) -> None:
    found = made(shapes, event)
    assert (type(found), vars(found)) == (type(event), vars(event))
    assert found is not event
    again = pickle.loads(pickle.dumps(event))
    assert list(vars(found)) == list(vars(again))


def test_instances_of_one_class_share_their_shape(shapes: Shapes) -> None:
    events = [Order(number, "x") for number in range(5)] + [Plain(a=1), Plain(a=2)]
    assert [made(shapes, event) for event in events] == events
    assert len(shapes.found) == 2


def test_class_of_the_script_is_defined_once(shapes: Shapes, encoder: Encoder) -> None:
    @dataclass
    class Local:
        number: int

    assert made(shapes, Local(7)) == Local(7)
    assert made(shapes, Local(8)) == Local(8)
    ((number, definition),) = encoder.take_definitions()
    assert getattr(define_class(number, definition), "__name__", None) == "Local"


class Slots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class NoSlots:
    __slots__ = ()


class MoreSlots(Plain):
    __slots__ = ("other",)


class Reduced(Plain):
    def __reduce__(self) -> tuple[Any, ...]:
        return Plain, ()


class ReducedEx(Plain):
    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return Plain, ()


class State(Plain):
    def __getstate__(self) -> object:
        return {"other": 1}


class Restored(Plain):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.restored = state


class Made(Plain):
    def __new__(cls, **_: Any) -> Made:
        return super().__new__(cls)


class MadeWith(Plain):
    def __getnewargs__(self) -> tuple[int]:
        return (1,)


class Asked(Plain):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class AskedAlways(Plain):
    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)


class Liar(Plain):
    __class__ = Order  # type: ignore[assignment]


class Meta(type):
    pass


class WithMeta(Plain, metaclass=Meta):
    pass


class Registered(Plain):
    pass


class Pair(NamedTuple):
    a: int


class Odd(dict[str, Any]):
    pass


@pytest.fixture
def registered() -> Iterator[None]:
    copyreg.pickle(Registered, lambda _: (Plain, ()))  # type: ignore[arg-type,return-value]
    yield
    del copyreg.dispatch_table[Registered]


def odd_dict() -> Plain:
    event = Plain()
    event.__dict__ = Odd(a=1)
    return event


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    "event",
    [
        *(Slots(), Reduced(a=1), ReducedEx(a=1), State(a=1), Restored(a=1), Made(a=1)),
        *(
            NoSlots(),
            MoreSlots(a=1),
            MadeWith(a=1),
            Asked(a=1),
            AskedAlways(a=1),
            Liar(a=1),
            WithMeta(a=1),
        ),
        *(Registered(a=1), Pair(1), Odd(a=1), OrderedDict(a=1), ValueError("a"), odd_dict()),
        *(Color.RED, Order, object(), [1], {"a": 1}, b"bytes", 1j),
        *(Plain(), Plain(**{f"a{number}": number for number in range(MOST_ATTRIBUTES + 1)})),
        *(Plain(a=[1]), Plain(a="a" * 201), Plain(a=2**62), Plain(a=Number(1)), Plain(a=Order)),
        *(Plain(__setstate__=1), Plain(__reduce_ex__=1), Of[int](one=1)),
    ],
    ids=lambda event: f"{type(event).__name__}",
)
def test_other_events_are_pickled(shapes: Shapes, event: Any) -> None:
    assert shapes.take(event) is None


def test_instance_with_other_attributes_than_the_first_of_its_class_is_pickled(
    shapes: Shapes,
) -> None:
    assert made(shapes, Plain(a=1, b=2)) == Plain(a=1, b=2)
    for other in Plain(b=2, a=1), Plain(a=1), Plain(a=1, b=2, c=3), Plain():
        assert shapes.take(other) is None
    assert made(shapes, Plain(a=3, b=4)) == Plain(a=3, b=4)


def test_class_that_cannot_travel_leaves_its_error_to_pickling() -> None:
    def refuse(_: type) -> bytes:
        raise ValueError("no class")

    assert Shapes(refuse).take(Order(1, "x")) is None


def test_class_that_is_missing_in_the_worker_is_an_error_of_each_of_its_events() -> None:
    maker = Maker((b"cno_such_module\nClass\n.", ("a",)))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            maker((1,))
