# SPDX-License-Identifier: MIT
"""Objects to a worker process and back: classes by value, by number, and forbidden cases.

The worker here is a process of its own. It decodes what it gets, describes it, and sends it back
encoded. So no object is found by accident because both sides are one process.
"""

import collections
import copyreg
import enum
import functools
import pickle
import re
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.codec import encoder as codec
from procbus.codec.encoder import (
    PARENT,
    Encoder,
    class_by_number,
    decode,
    define_class,
    encode_alone,
    forget_classes,
    travels_by_value,
)

WORKER = 1_000_000

_ECHO = f"""
import pickle, sys
from procbus.codec.encoder import Encoder, decode, define_class
encoder = Encoder({WORKER})
while True:
    try:
        definitions, data = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    for number, definition in definitions:
        cls = define_class(number, definition)
        if cls is not None:
            encoder.know(cls, number)
    try:
        obj = decode(data)
        back = encoder.encode(obj)
        answer = repr(obj), encoder.take_definitions(), back
    except BaseException as error:
        answer = f"{{type(error).__name__}}: {{error}}", [], None
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


class Echo:
    """A worker process at the other end, and the parent's encoder for it."""

    def __init__(self) -> None:
        self.encoder = Encoder(PARENT)
        self.sizes: list[int] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, obj: Any) -> tuple[str, bytes | None]:
        """Send an object; return its repr there, and how it came back."""
        data = self.encoder.encode(obj)
        self.sizes.append(len(data))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump((self.encoder.take_definitions(), data), self.process.stdin)
        self.process.stdin.flush()
        text, definitions, back = pickle.load(self.process.stdout)
        for number, definition in definitions:
            cls = define_class(number, definition)
            if cls is not None:
                self.encoder.know(cls, number)
        return text, back

    def there_and_back(self, obj: Any) -> Any:
        text, back = self.send(obj)
        assert back is not None, text
        return decode(back)

    def close(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


T = TypeVar("T")


def local_classes() -> types.SimpleNamespace:
    """Classes of every kind that a script may define, none of them importable."""

    @dataclass
    class Plain:
        number: int
        rows: list[Any] = field(default_factory=list)

    @dataclass(frozen=True, slots=True)
    class Slotted:
        number: int
        text: str = "x"

    @dataclass
    class Child(Plain):
        extra: Any = None

    class Color(enum.Enum):
        RED = 1
        BLUE = "blue"

    class Level(enum.IntEnum):
        LOW = 1
        HIGH = 2

    class Flags(enum.Flag):
        A = enum.auto()
        B = enum.auto()

    class Point(NamedTuple):
        x: int
        y: int = 0

    class Failure(Exception):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(code, text)
            self.code = code

    @dataclass
    class Box(Generic[T]):
        content: T

    class Slots:
        __slots__ = ("__weakref__", "a", "b")

        def __init__(self, a: int) -> None:
            self.a = a

        def __eq__(self, other: object) -> bool:
            return type(other) is Slots and other.a == self.a

        __hash__ = None  # type: ignore[assignment]

    class Reduced:
        def __init__(self, a: int, b: int) -> None:
            self.pair = (a, b)

        def __reduce__(self) -> Any:
            return type(self), self.pair

        def __eq__(self, other: object) -> bool:
            return type(other) is Reduced and other.pair == self.pair

        __hash__ = None  # type: ignore[assignment]

    class WithState(Reduced):
        def __reduce__(self) -> Any:
            return type(self), (0, 0), {"pair": self.pair}

        def __eq__(self, other: object) -> bool:
            return type(other) is WithState and other.pair == self.pair

        __hash__ = None

    class NewArgs(int):
        def __new__(cls, number: int, *, unit: str) -> Any:
            self = super().__new__(cls, number)
            self.unit = unit
            return self

        def __getnewargs_ex__(self) -> Any:
            return (int(self),), {"unit": self.unit}

        def __eq__(self, other: object) -> bool:
            return type(other) is NewArgs and int(self) == int(other) and self.unit == other.unit

        __hash__ = int.__hash__
        unit: str

    class State:
        def __init__(self, value: Any) -> None:
            self.value = value

        def __getstate__(self) -> Any:
            return [self.value, "packed"]

        def __setstate__(self, state: Any) -> None:
            self.value = state[0]

        def __eq__(self, other: object) -> bool:
            return type(other) is State and other.value == self.value

        __hash__ = None  # type: ignore[assignment]

    class Names(list[Any]):
        pass

    class Table(dict[Any, Any]):
        pass

    class ByMethod:
        @classmethod
        def make(cls, value: Any) -> Any:
            self = cls()
            self.value = value
            return self

        def __reduce__(self) -> Any:
            return self.make, (self.value,)

        def __eq__(self, other: object) -> bool:
            return type(other) is ByMethod and other.value == self.value

        __hash__ = None  # type: ignore[assignment]
        value: Any

    return types.SimpleNamespace(**{k: v for k, v in locals().items() if isinstance(v, type)})


def as_main(classes: types.SimpleNamespace) -> types.SimpleNamespace:
    """The same classes, as if a script had defined them."""
    main = sys.modules["__main__"]
    for name, cls in vars(classes).items():
        cls.__module__, cls.__qualname__ = "__main__", name
        setattr(main, name, cls)
    return classes


@pytest.fixture(params=["local", "main"], scope="module")
def classes(request: pytest.FixtureRequest) -> Iterator[types.SimpleNamespace]:
    found = local_classes()
    if request.param == "main":
        as_main(found)
    yield found
    for name in vars(found):
        if getattr(sys.modules["__main__"], name, None) is getattr(found, name):
            delattr(sys.modules["__main__"], name)


EXAMPLES = {
    "dataclass": lambda c: c.Plain(1, ["a", {"b": 2}]),
    "frozen dataclass with slots": lambda c: c.Slotted(7, "text"),
    "inheritance": lambda c: c.Child(1, [2], "extra"),
    "enum": lambda c: c.Color.BLUE,
    "int enum": lambda c: c.Level.HIGH,
    "flag": lambda c: c.Flags.A | c.Flags.B,
    "named tuple": lambda c: c.Point(1, 2),
    "generic": lambda c: c.Box(c.Point(1)),
    "slots": lambda c: c.Slots(5),
    "reduce to the class": lambda c: c.Reduced(1, 2),
    "reduce with state": lambda c: c.WithState(3, 4),
    "getnewargs_ex": lambda c: c.NewArgs(3, unit="m"),
    "getstate": lambda c: c.State([1, 2]),
    "list": lambda c: c.Names([1, c.Point(1), c.Names()]),
    "dict": lambda c: c.Table({"a": c.Color.RED}),
    "reduce to a method": lambda c: c.ByMethod.make(3),
    "nested": lambda c: c.Plain(1, [c.Child(2, [c.Point(1)], c.Color.RED), c.Slotted(1)]),
    "in a list": lambda c: [c.Plain(1), c.Point(2), c.Plain(3)],
    "as a key": lambda c: {c.Point(1): c.Slotted(2), c.Color.RED: 1},
    "the class itself": lambda c: c.Plain,
    "classes as values": lambda c: [c.Plain, c.Color, int, c.Plain],
    "partial": lambda c: functools.partial(c.Plain, 1).args,
    "mixed with library types": lambda c: collections.OrderedDict(
        a=c.Point(1), b=collections.deque([c.Plain(1)])
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_objects_of_a_script_come_back_equal_and_of_the_same_class(echo, classes, example):
    obj = EXAMPLES[example](classes)
    for _ in range(3):  # the first time with definitions, then by number
        back = echo.there_and_back(obj)
        assert type(back) is type(obj)
        assert back == obj
    if isinstance(obj, enum.Enum | type):
        assert back is obj


def test_an_exception_of_a_script_comes_back(echo, classes):
    for _ in range(2):
        back = echo.there_and_back(classes.Failure(7, "text"))
        assert type(back) is classes.Failure
        assert (back.args, back.code) == ((7, "text"), 7)


def test_the_worker_has_an_object_of_that_class_with_its_methods(echo, classes):
    text, _ = echo.send(classes.Slotted(3, "y"))
    assert text.endswith("Slotted(number=3, text='y')")


def test_cycles_come_back_as_cycles(echo, classes):
    obj = classes.Plain(1)
    obj.rows += [obj, [obj]]
    for _ in range(3):
        back = echo.there_and_back(obj)
        assert type(back) is classes.Plain
        assert back.rows[0] is back
        assert back.rows[1][0] is back


def test_shared_parts_stay_shared_within_an_event_and_never_between_two(echo, classes):
    part = classes.Plain(1)
    for _ in range(2):
        one, other = echo.there_and_back([part, part])
        assert one is other
        assert one is not part
    assert echo.there_and_back(part) is not echo.there_and_back(part)


def test_a_change_between_two_events_is_seen(echo, classes):
    part = classes.Plain(1, [1])
    assert echo.there_and_back(part).rows == [1]
    part.rows.append(2)
    assert echo.there_and_back(part).rows == [1, 2]
    assert part.rows == [1, 2]


def test_a_class_is_defined_once_and_then_named_by_a_number():
    encoder, other = Encoder(PARENT), Encoder(PARENT)

    @dataclass
    class Local:
        number: int

    first = encoder.encode(Local(1))
    (definition,) = encoder.take_definitions()
    assert encoder.take_definitions() == []
    second = encoder.encode(Local(2))
    assert encoder.take_definitions() == []
    assert len(first) < 100
    assert len(second) < 100
    assert decode(second) == Local(2)
    other.encode(Local(3))
    assert other.take_definitions() == [definition]  # its number is the same for all workers


def test_a_base_that_travelled_with_its_child_is_the_same_class_as_the_base_alone(echo):
    classes = local_classes()
    child = echo.there_and_back(classes.Child(1))
    plain = echo.there_and_back(classes.Plain(1))
    assert type(child).__mro__[1] is type(plain) is classes.Plain


def test_coming_back_does_not_reset_a_class_in_the_parent(echo):
    class Counter:
        seen = 0

    class Holder(Counter):
        pass

    # The worker learns of Counter as the base of Holder, and has to define it to send one back.
    function = encode_alone(lambda: Counter())
    del function
    echo.there_and_back(Holder())
    Counter.seen = 5
    back = echo.there_and_back([Holder(), Counter()])
    assert type(back[1]) is Counter
    assert Counter.seen == 5


def test_classes_of_importable_modules_go_by_name():
    encoder = Encoder(PARENT)
    data = encoder.encode(collections.Counter("aab"))
    assert data == pickle.dumps(collections.Counter("aab"), codec.PROTOCOL)
    assert encoder.take_definitions() == []
    assert encoder.number_of(collections.Counter) is None


def test_a_text_that_mentions_main_is_only_a_text(echo):
    for obj in ("__main__", b"__main__", {"__main__": ["__main__"]}):
        assert echo.there_and_back(obj) == obj


def test_object_with_the_text_main_is_pickled_as_plainly_as_one_without_it():
    filters = [("default", None, DeprecationWarning, "__main__", 0), re.compile("x"), len]
    encoder = Encoder(PARENT)

    for obj in (filters, [filters, DeprecationWarning], {"x": 1}, filters):
        assert encoder.encode(obj) == pickle.dumps(obj, codec.PROTOCOL)


def test_object_of_a_script_beside_the_text_main_arrives(echo):
    point = local_classes().Point(1, 2)
    for obj in (["__main__", len], ["__main__", point], [point, "__main__"], ["__main__"]):
        assert echo.there_and_back(obj) == obj
    assert echo.there_and_back(["__main__", lambda n: n + 1])[1](1) == 2


def test_functions_and_lambdas_of_a_script_travel_in_an_event(echo):
    offset = 3
    back = echo.there_and_back([lambda n: n + offset, functools.partial(pow, 2)])
    assert back[0](1) == 4
    assert back[1](3) == 8


def test_registered_modules_travel_by_value(echo, monkeypatch):
    module = types.ModuleType("shop_by_value")
    exec("class Item:\n    def __init__(self, n): self.n = n\n", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    item = module.Item(3)
    text, _ = echo.send(item)
    assert "No module named 'shop_by_value'" in text
    cloudpickle.register_pickle_by_value(module)
    try:
        echo.encoder = Encoder(PARENT)  # modules that it took for importable are not asked again
        for _ in range(2):
            back = echo.there_and_back(item)
            assert type(back) is module.Item
            assert back.n == 3
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_module_registered_later_is_seen_when_an_encoder_looks_again(echo, monkeypatch):
    module = types.ModuleType("shop_registered_later")
    exec("class Item:\n    def __init__(self, n): self.n = n\n", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    cloudpickle.register_pickle_by_value(module)
    try:
        echo.encoder.look_again()
        back = echo.there_and_back(module.Item(3))
        assert (type(back), back.n) == (module.Item, 3)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_a_reducer_registered_with_copyreg_is_used(echo):
    class Odd:
        def __init__(self, value: Any) -> None:
            self.value = value

    copyreg.pickle(Odd, lambda odd: (Odd, ("by copyreg",)))
    try:
        for _ in range(3):
            assert echo.there_and_back(Odd(1)).value == "by copyreg"
            assert echo.there_and_back([Odd(1)])[0].value == "by copyreg"
    finally:
        del copyreg.dispatch_table[Odd]


def test_class_that_cannot_be_loaded_fails_only_its_own_objects():
    number = (PARENT, 10**9)
    definition = pickle.dumps(print).replace(b"print", b"prunt")
    assert define_class(number, definition) is None
    with pytest.raises(pickle.UnpicklingError, match="a class could not be loaded: AttributeError"):
        class_by_number(*number)
    with pytest.raises(pickle.UnpicklingError, match="its definition never arrived"):
        class_by_number(PARENT, 10**9 + 1)


def test_classes_of_a_worker_that_is_gone_are_forgotten():
    class Local:
        pass

    define_class((77, 1), encode_alone(Local))
    assert class_by_number(77, 1) is Local
    forget_classes(77)
    with pytest.raises(pickle.UnpicklingError):
        class_by_number(77, 1)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("never")


def test_object_that_cannot_be_pickled_raises_and_the_encoder_goes_on(echo):
    class Local:
        pass

    for obj in (Unpicklable(), [Local(), Unpicklable()], threading.Lock()):
        with pytest.raises(TypeError):
            echo.encoder.encode(obj)
    assert type(echo.there_and_back(Local())) is Local
    assert echo.there_and_back([1]) == [1]


@pytest.mark.parametrize(
    ("obj", "by_value"),
    [
        (collections.Counter, False),
        (Unpicklable, False),
        (local_classes, False),
        (local_classes().Plain, True),
        (lambda: None, True),
        (type("Made", (), {"__module__": "nowhere"}), True),
        (type("Counter", (), {"__module__": "collections"}), True),
    ],
)
def test_object_that_a_worker_cannot_import_travels_by_value(obj, by_value):
    assert travels_by_value(obj) is by_value


CLASSES = local_classes()
LEAVES = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=5),
    st.sampled_from([CLASSES.Color.RED, CLASSES.Level.LOW, CLASSES.Plain, "__main__"]),
    st.builds(CLASSES.Point, st.integers(), st.integers()),
    st.builds(CLASSES.Slotted, st.integers()),
    st.builds(CLASSES.Reduced, st.integers(), st.integers()),
)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.builds(CLASSES.Plain, st.integers(), st.lists(inner, max_size=3)),
        st.builds(CLASSES.Child, st.integers(), st.lists(inner, max_size=2), inner),
        st.builds(CLASSES.Box, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=12,
)


@given(st.lists(OBJECTS, min_size=1, max_size=4))
def test_any_mix_of_objects_comes_back_equal(echo, objects):
    for obj in objects:
        back = echo.there_and_back(obj)
        assert back == obj
        assert type(back) is type(obj)


@given(st.lists(OBJECTS, min_size=1, max_size=4))
def test_encoding_leaves_the_object_as_it_was_and_gives_the_same_again(objects):
    encoder = Encoder(PARENT)
    for obj in objects:
        encoder.encode(obj)
    settled = [decode(encoder.encode(obj)) for obj in objects]
    assert settled == objects


def test_function_by_value_keeps_the_name_of_its_file() -> None:
    made = eval(compile("lambda: (lambda: None)", "/somewhere/job.py", "eval"))
    made.__module__ = "__main__"
    loaded = decode(encode_alone(made))
    assert loaded.__code__.co_filename == "/somewhere/job.py"
    assert loaded().__code__.co_filename == "/somewhere/job.py"


class KeywordOnly(Exception):
    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text)
        self.status = status


def test_an_exception_of_the_script_is_a_value_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(KeywordOnly, "__module__", "__main__")
    encoder = Encoder(PARENT)
    group = ExceptionGroup("two", [KeywordOnly("in", status=3)])
    for event in (KeywordOnly("x", status=1), [KeywordOnly("y", status=2)], group):
        data = encoder.encode(event)
        for number, definition in encoder.take_definitions():
            define_class(number, definition)
        arrived = decode(data)
        assert repr(arrived) == repr(event)
    assert arrived.exceptions[0].status == 3
