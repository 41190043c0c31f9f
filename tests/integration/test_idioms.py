"""Ways to write a script: its definitions work in a worker process as they do in the script."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from tests.integration.conftest import Run

PRELUDE = """
from __future__ import annotations

import itertools
from procbus import EventBus, SerializationError

bus = EventBus(handlers=[], cpu_workers=1)
numbers = itertools.count()

def there(handler, event=1):
    topic = f"topic{next(numbers)}"
    bus.subscribe(topic, handler, kind="cpu")
    return bus.publish(topic, event).result(60)

"""
END = "\nbus.close()\nprint('done')\n"


def check(run: Run, script: str) -> None:
    ended = run(PRELUDE + textwrap.dedent(script) + END)
    assert (ended.code, ended.out) == (0, "done\n"), ended.err


def test_cached_functions_and_functools_wrappers_are_handlers(run: Run) -> None:
    check(
        run,
        """
        import contextlib, functools

        @functools.cache
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        @functools.lru_cache(maxsize=8, typed=True)
        def square(n):
            return n * n

        @functools.singledispatch
        def kind(x):
            return "other"

        @kind.register
        def _(x: int):
            return "int"

        class Job:
            def __init__(self, n):
                self.n = n
            @functools.lru_cache
            def twice(self):
                return self.n * 2
            @functools.cached_property
            def thrice(self):
                return self.n * 3
            @functools.singledispatchmethod
            def say(self, x):
                return "other"
            @say.register
            def _(self, x: str):
                return "str"
            def add(self, a, b):
                return a + b
            add_ten = functools.partialmethod(add, 10)

        @contextlib.contextmanager
        def one_more(n):
            yield n + 1

        def decorated(function):
            @functools.wraps(function)
            def wrapper(event):
                with one_more(function(event)) as result:
                    return result
            return wrapper

        @decorated
        def ten_more(n):
            return n + 10

        assert there(lambda n: fib(n), 30) == 832040
        assert there(square, 7) == 49
        assert there(lambda n: (square.cache_parameters(), square.__name__)) == (
            {"maxsize": 8, "typed": True}, "square")
        assert there(lambda _: (kind(1), kind(""))) == ("int", "other")
        assert there(kind, 1) == "int"
        assert there(lambda j: (j.twice(), j.thrice, vars(j)["thrice"]), Job(4)) == (8, 12, 12)
        assert there(lambda j: (j.say(""), j.say(1), j.add_ten(1)), Job(4)) == ("str", "other", 11)
        assert there(ten_more, 1) == 12
        assert there(Job(4).add_ten, 1) == 11
        result = there(lambda n: Job(n), 5)
        assert type(result) is Job and result.thrice == 15
        """,
    )


@pytest.mark.slow
def test_objects_made_by_typing_travel(run: Run) -> None:
    check(
        run,
        """
        import typing
        from dataclasses import dataclass
        from typing import *

        UserId = NewType("UserId", int)
        Child = NewType("Child", UserId)
        T, P, Ts = TypeVar("T"), ParamSpec("P"), TypeVarTuple("Ts")

        class Box(Generic[T]):
            def __init__(self, value):
                self.value = value
        class Ints(Box[int]):
            pass
        class Call(Generic[P, T]):
            pass
        class Many(Generic[*Ts]):
            pass
        class Row(TypedDict, total=False):
            a: int
            b: Required[str]
        class Point(NamedTuple):
            "A point."
            x: int
            y: int = 2
            def sum(self):
                return self.x + self.y
        @runtime_checkable
        class Runs(Protocol):
            def run(self): ...
        class Runner(Runs):
            def run(self):
                return 4
        @dataclass
        class Tree:
            children: list[Tree]

        assert there(lambda n: (UserId(n), Child.__supertype__ is UserId)) == (1, True)
        assert there(lambda _: (T.__name__, P.__name__, Ts.__name__)) == ("T", "P", "Ts")
        assert there(lambda e: (e.value, Box[int](3).value), Ints(2)) == (2, 3)
        assert there(lambda e: Box.__parameters__ == (T,))
        assert there(lambda _: (Call[[int], str].__args__[1], Many[int, str].__args__)) == (
            str, (int, str))
        assert there(lambda _: (Row(b="x"), Row.__optional_keys__)) == (
            {"b": "x"}, Row.__optional_keys__)
        assert there(lambda p: (p.sum(), Point(1).y, p._replace(x=5), Point.__doc__), Point(1)) == (
            3, 2, Point(5), "A point.")
        assert there(lambda e: isinstance(e, Runs) and not isinstance(3, Runs), Runner())
        assert there(lambda e: get_type_hints(Tree)["children"] == list[Tree], Tree([]))
        """,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is that of Python 3.12")
def test_type_parameters_and_aliases(run: Run) -> None:
    check(
        run,
        """
        type Ids = list[int]
        type Json = dict[str, Json] | list[Json] | int
        type Pair[A] = tuple[A, A]
        class Box[A]:
            def __init__(self, value: A) -> None:
                self.value = value
        class Call[**P, *Ts]:
            pass
        def same[A: int](event: A) -> A:
            return event

        assert there(lambda _: (Ids.__value__, Pair.__type_params__[0].__name__)) == (
            list[int], "A")
        assert there(lambda _: Json.__value__.__args__[1].__args__[0] is Json)
        assert there(lambda e: (e.value, Box[int](3).value), Box(4)) == (4, 3)
        assert there(lambda _: [p.__name__ for p in Call.__type_params__]) == ["P", "Ts"]
        assert there(same, 4) == 4
        """,
    )


def test_dataclasses_and_slots(run: Run) -> None:
    check(
        run,
        """
        import dataclasses, weakref
        from dataclasses import InitVar, dataclass, field

        @dataclass(slots=True, kw_only=True)
        class Slotted:
            a: int
            b: list = field(default_factory=list)
            start: InitVar[int] = 3
            d: int = field(init=False, default=0)
            def __post_init__(self, start):
                self.d = start
        @dataclass
        class Plain:
            x: int
            y: int = 5
        class Private:
            __slots__ = ("__secret", "open", "__weakref__")
            def __init__(self):
                self.__secret, self.open = 1, 2
            def secret(self):
                return self.__secret
        class Further(Private):
            __slots__ = "extra"

        def derive(event):
            @dataclass
            class Derived(Plain):
                z: int = 0
            plain = dataclasses.fields(Plain)[0].default is dataclasses.MISSING
            return dataclasses.replace(event, x=9).x, dataclasses.asdict(Derived(1)), plain
        def has_no_dict(event):
            try:
                event.other = 1
            except AttributeError:
                return event.secret(), weakref.ref(event)() is event

        assert there(lambda e: (e.d, e.b, Slotted(a=1, start=9).d), Slotted(a=1)) == (3, [], 9)
        assert there(lambda e: hasattr(e, "__dict__"), Slotted(a=1)) is False
        assert there(lambda e: Slotted(a=2)) == Slotted(a=2)
        assert there(derive, Plain(1)) == (9, {"x": 1, "y": 5, "z": 0}, True)
        assert there(has_no_dict, Private()) == (1, True)
        assert there(lambda e: (e.secret(), hasattr(e, "extra")), Further()) == (1, False)
        """,
    )


@pytest.mark.slow
def test_enums(run: Run) -> None:
    check(
        run,
        """
        import enum

        class Color(enum.Enum):
            RED = 1
            BLUE = 2
            CRIMSON = 1
            @property
            def nice(self):
                return self.name.lower()
            @classmethod
            def _missing_(cls, value):
                return cls.RED
        class Planet(enum.Enum):
            MERCURY = (1, 2)
            EARTH = (3, 4)
            def __init__(self, mass, radius):
                self.mass, self.radius = mass, radius
        class Coordinate(bytes, enum.Enum):
            def __new__(cls, value, label):
                made = bytes.__new__(cls, [value])
                made._value_, made.label = value, label
                return made
            X = 0, "x"
            Y = 1, "y"
        class Pair(tuple, enum.Enum):
            def __new__(cls, pair):
                made = tuple.__new__(cls, pair)
                made._value_ = pair[0]
                return made
            ONE = 1, 2
        class Level(enum.IntEnum):
            def __new__(cls, value, text):
                made = int.__new__(cls, value)
                made._value_, made.text = value, text
                return made
            LOW = 1, "low"
        class Right(enum.Flag):
            READ = enum.auto()
            WRITE = enum.auto()
            BOTH = READ | WRITE
        class Word(enum.StrEnum):
            A = enum.auto()
            B = "b"

        assert there(lambda e: (e is Color.BLUE, e.nice, Color(77) is Color.RED), Color.BLUE) == (
            True, "blue", True)
        assert there(lambda e: (Color.CRIMSON is Color.RED, list(Color.__members__))) == (
            True, ["RED", "BLUE", "CRIMSON"])
        assert there(lambda e: Color.BLUE) is Color.BLUE
        assert there(lambda e: (e.mass, Planet.MERCURY.radius), Planet.EARTH) == (3, 2)
        assert there(lambda e: (e.label, bytes(e), Coordinate(1) is e), Coordinate.Y) == (
            "y", b"\\x01", True)
        assert there(lambda e: (tuple(e), Pair(1) is e), Pair.ONE) == ((1, 2), True)
        assert there(lambda e: (e + 1, e.text), Level.LOW) == (2, "low")
        assert there(lambda e: [r.name for r in e], Right.BOTH) == ["READ", "WRITE"]
        assert there(lambda e: (Right.READ in e, Right.BOTH.name), Right.BOTH) == (True, "BOTH")
        assert there(lambda e: (e.upper(), Word("a") is Word.A), Word.A) == ("A", True)
        """,
    )


@pytest.mark.slow
def test_keywords_of_classes_metaclasses_descriptors_and_abstract_classes(run: Run) -> None:
    check(
        run,
        """
        import abc

        class Table:
            all = {}
            def __init_subclass__(cls, /, table, **keywords):
                super().__init_subclass__(**keywords)
                cls.table = table
                Table.all[table] = cls
        class Order(Table, table="orders"):
            pass
        class Late(Order, table="late"):
            pass
        class Meta(type):
            made = []
            def __new__(meta, name, bases, inside, *, tag):
                made = super().__new__(meta, name, bases, inside)
                made.tag = tag
                meta.made.append(name)
                return made
            def __init__(cls, name, bases, inside, *, tag):
                super().__init__(name, bases, inside)
            def __len__(cls):
                return 7
        class Tagged(metaclass=Meta, tag="t"):
            pass
        class Doubled:
            def __set_name__(self, owner, name):
                self.name = name
            def __get__(self, instance, owner):
                return self if instance is None else vars(instance)[self.name]
            def __set__(self, instance, value):
                vars(instance)[self.name] = value * 2
        class Holder:
            value = Doubled()
        class Shape(abc.ABC):
            @property
            @abc.abstractmethod
            def area(self): ...
        class Square(Shape):
            @property
            def area(self):
                return 4
        class Virtual:
            pass
        Shape.register(Virtual)
        class First:
            late = 1
            def other(self):
                return Second()
        class Second(First):
            def other(self):
                return super().other()
        First.late = 5
        class Outer:
            class Inner:
                pass
            def make(self):
                return self.Inner()

        def subclass(event):
            class Here(Table, table="here"):
                pass
            return sorted(Table.all), event.table, Here.table, Table.all["orders"] is Order
        def abstract(event):
            try:
                Shape()
            except TypeError:
                return event.area, isinstance(event, Shape), issubclass(Virtual, Shape)

        assert there(subclass, Late()) == (["here", "late", "orders"], "late", "here", True)
        assert sorted(Table.all) == ["late", "orders"]
        assert there(lambda e: (len(Tagged), e.tag, Meta.made), Tagged()) == (7, "t", ["Tagged"])
        holder = Holder()
        holder.value = 4
        assert there(lambda e: (e.value, Holder.value.name), holder) == (8, "value")
        assert there(abstract, Square()) == (4, True, True)
        assert there(lambda e: (type(e.other()) is Second, e.late), Second()) == (True, 5)
        assert there(lambda e: (type(e) is Outer.Inner, type(Outer().make()) is Outer.Inner),
                     Outer.Inner()) == (True, True)
        """,
    )


def test_structures_of_ctypes(run: Run) -> None:
    check(
        run,
        """
        import ctypes

        class Point(ctypes.Structure):
            _pack_ = 1
            _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]
            def sum(self):
                return self.x + self.y
        class Either(ctypes.Union):
            _fields_ = [("number", ctypes.c_int), ("point", Point)]
        class Line(ctypes.Structure):
            _anonymous_ = ("either",)
            _fields_ = [("points", Point * 3), ("either", Either), ("bits", ctypes.c_int, 3)]
        class Node(ctypes.Structure):
            pass
        Node._fields_ = [("value", ctypes.c_int), ("next", ctypes.POINTER(Node))]

        line = Line(number=3)
        line.points[1].x = 5
        assert there(lambda e: (e.sum(), ctypes.sizeof(Point)), Point(1, 2.5)) == (3.5, 12)
        assert there(lambda e: (e.points[1].x, e.number, type(e.points[0]) is Point), line) == (
            5, 3, True)
        assert there(lambda e: ctypes.sizeof(Line)) == ctypes.sizeof(Line)
        assert there(lambda e: list(e), (ctypes.c_int * 3)(1, 2, 3)) == [1, 2, 3]
        assert there(lambda e: Node(3, ctypes.pointer(Node(e))).next.contents.value) == 1
        point = there(lambda e: Point(3, 4))
        assert type(point) is Point and point.y == 4
        """,
    )


@pytest.mark.slow
def test_structs_of_msgspec(run: Run) -> None:
    pytest.importorskip("msgspec")
    check(
        run,
        """
        import msgspec

        class Short(msgspec.Struct, frozen=True, tag="s", array_like=True, gc=False):
            a: int
            b: str = "x"
        class Long(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
            my_field: int
            others: list[int] = []
            table: dict = msgspec.field(default_factory=lambda: {"k": 1})
            def __post_init__(self):
                self.others.append(1)
            def sum(self):
                return self.my_field + len(self.others)
        class Longer(Long, kw_only=True):
            extra: Short | None = None

        decode, encode = msgspec.json.decode, msgspec.json.encode
        assert there(lambda e: (encode(e), decode(b'["s",3]', type=Short).a), Short(1)) == (
            b'["s",1,"x"]', 3)
        assert there(lambda e: Long(my_field=3).sum()) == 4
        assert there(lambda e: b"myField" in encode(e), Long(my_field=2))
        assert there(lambda e: decode(b'{"myField":1,"extra":["s",7]}', type=Longer).extra.a) == 7
        made = there(lambda e: Longer(my_field=1, extra=Short(2)))
        assert type(made) is Longer and made.extra == Short(2)
        """,
    )


def test_models_of_pydantic(run: Run) -> None:
    pytest.importorskip("pydantic")
    check(
        run,
        """
        from typing import *
        import pydantic

        T = TypeVar("T")
        class Model(pydantic.BaseModel, frozen=True):
            a: int
            _secret: int = pydantic.PrivateAttr(default=7)
            @pydantic.field_validator("a")
            @classmethod
            def positive(cls, value):
                if value < 0:
                    raise ValueError("negative")
                return value
            @pydantic.computed_field
            @property
            def doubled(self) -> int:
                return self.a * 2
        class Cat(pydantic.BaseModel):
            kind: Literal["cat"]
        class Dog(pydantic.BaseModel):
            kind: Literal["dog"]
        class Owner(pydantic.BaseModel, extra="forbid"):
            pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
        class Box(pydantic.BaseModel, Generic[T]):
            value: T
        @pydantic.dataclasses.dataclass
        class Data:
            a: int

        def validate(event):
            try:
                Model(a=-1)
            except pydantic.ValidationError:
                return event.a, event._secret, event.model_dump()

        assert there(validate, Model(a=1)) == (1, 7, {"a": 1, "doubled": 2})
        owner = Owner(pet={"kind": "cat"})
        assert there(lambda e: type(Owner(pet={"kind": "dog"}).pet) is Dog, owner)
        assert there(lambda e: type(e) is Box[int] and Box[int](value="3").value, Box[int](value=1))
        assert type(there(lambda e: Box[int](value=2))) is Box[int]
        assert there(lambda e: (e.a, Data(a="3").a), Data(1)) == (1, 3)
        """,
    )


@pytest.mark.slow
def test_classes_of_attrs(run: Run) -> None:
    pytest.importorskip("attrs")
    check(
        run,
        """
        import attrs

        @attrs.define
        class Base:
            a: int
            b: list = attrs.field(factory=list)
            def name(self):
                return super().__repr__() and __class__.__name__
        @attrs.frozen
        class Frozen(Base):
            c: int = attrs.field(default=3, validator=attrs.validators.instance_of(int))

        def change(event):
            try:
                event.a = 3
            except attrs.exceptions.FrozenInstanceError:
                return event.name(), event.c

        assert there(lambda e: (e.name(), attrs.asdict(e), attrs.evolve(e, a=5).a), Base(1)) == (
            "Base", {"a": 1, "b": []}, 5)
        assert there(lambda e: hasattr(e, "__dict__"), Base(1)) is False
        assert there(change, Frozen(1)) == ("Base", 3)
        assert there(lambda e: Frozen(2)) == Frozen(2)
        """,
    )


def test_sentinels_stay_the_same_object_there_and_back(run: Run) -> None:
    check(
        run,
        """
        from dataclasses import dataclass

        class Unset:
            pass
        class Missing:
            def __reduce__(self):
                return "MISSING"
        UNSET, BARE, MISSING = Unset(), object(), Missing()
        @dataclass
        class Event:
            a: object = UNSET
            b: object = BARE
            c: object = MISSING

        def same(e):
            return e.a is UNSET, e.b is BARE, e.c is MISSING
        def same_of_dict(e):
            return e["a"] is UNSET, e["b"] is BARE, e["c"] is MISSING
        def default(event, bare=BARE):
            return bare is BARE

        for _ in range(3):
            assert there(same, Event()) == (True, True, True)
            assert there(same_of_dict, {"a": UNSET, "b": BARE, "c": MISSING}) == (True, True, True)
        assert there(default)
        a, b, c = there(lambda _: [UNSET, BARE, MISSING])
        assert a is UNSET and b is BARE and c is MISSING
        event = there(lambda _: Event())
        assert event == Event() and event.b is BARE
        """,
    )


def test_objects_that_a_script_has_as_globals(run: Run) -> None:
    check(
        run,
        """
        import contextvars, logging, random, re, types, weakref
        from contextvars import ContextVar

        limit, bare = ContextVar("limit", default=3), ContextVar("bare")
        log = logging.getLogger("job")
        log.addHandler(logging.FileHandler("job.log"))
        told = logging.LoggerAdapter(log, {"a": 1})
        PATTERN, DICE, FIXED = re.compile("a+"), random.Random(3), types.MappingProxyType({"a": 1})
        KEYS, NUMBERS = {"a": 1}.keys(), range(4)
        seen = weakref.WeakKeyDictionary()
        from loguru import logger

        def use_context(event):
            token = limit.set(5)
            inside = limit.get()
            limit.reset(token)
            return limit.get(), inside, bare.get("none")

        assert there(use_context) == (3, 5, "none")
        assert there(lambda _: (log.name, told.extra)) == ("job", {"a": 1})
        assert there(lambda _: (PATTERN.match("aa") is not None, DICE.random() < 1)) == (True, True)
        assert there(lambda _: (FIXED["a"], list(KEYS), NUMBERS[2], len(seen))) == (1, ["a"], 2, 0)
        assert there(lambda _: logger.level("INFO").no) == 20
        """,
    )


@pytest.mark.slow
def test_functions_of_one_script_share_their_globals_in_a_worker(run: Run) -> None:
    check(
        run,
        """
        import functools

        cache, count = {}, 0
        class Counter:
            total = 0
        @functools.cache
        def opened(name):
            return object()

        def put(event):
            global count
            count += 1
            Counter.total += 1
            cache[event] = count
            return id(opened("x"))
        def look(event):
            return sorted(cache), count, Counter.total, id(opened("x"))

        bus.subscribe("put", put, kind="cpu")
        opened_there = bus.publish("put", "a").result(60)
        bus.subscribe("look", look, kind="cpu")  # is sent only now
        assert bus.publish("look", 1).result(60) == (["a"], 1, 1, opened_there)
        bus.publish("put", "b").result(60)
        assert bus.publish("look", 1).result(60) == (["a", "b"], 2, 2, opened_there)
        assert (cache, count, Counter.total) == ({}, 0, 0)
        """,
    )


def test_a_global_that_the_script_changes_is_seen_by_the_workers(run: Run) -> None:
    check(
        run,
        """
        import time

        factor, options, kept = 2, {"unit": "m"}, []
        class Config:
            rate = 1
            runs = 0
        config = Config()
        def helper(event):
            return event * factor
        def handler(event):
            kept.append(event)
            Config.runs += 1
            there = Config.rate, getattr(config, "deep", None)
            return helper(event), options["unit"], len(kept), there, Config.runs
        bus.subscribe("n", handler, kind="cpu")
        end = time.monotonic() + 60
        def soon(expected):
            while bus.publish("n", 1).result(60)[:2] != expected:
                assert time.monotonic() < end
        assert bus.publish("n", 1).result(60) == (2, "m", 1, (1, None), 1)
        factor = 3
        soon((3, "m"))
        options["unit"] = "km"
        soon((3, "km"))
        def helper(event):
            return event * factor * 100
        soon((300, "km"))
        Config.rate = 5
        config.deep = True
        while bus.publish("n", 1).result(60)[3] != (5, True):
            assert time.monotonic() < end
        kept_there, _, runs = bus.publish("n", 1).result(60)[2:]
        assert kept_there == runs > 5, "what the worker has changed itself stays"
        """,
    )


@pytest.mark.slow
def test_a_class_that_is_defined_anew_is_another_class_in_the_worker_too(run: Run) -> None:
    check(
        run,
        """
        import time

        def define(unit):
            global Page
            class Page:
                def __init__(self, n):
                    self.n = n
                def text(self):
                    return f"{self.n} {unit}"
            return Page

        old = define("m")
        def text(event):
            return event.text(), isinstance(event, Page)
        bus.subscribe("page", text, kind="cpu")
        first = old(1)
        assert bus.publish("page", first).result(60) == ("1 m", True)
        define("km")
        end = time.monotonic() + 60
        while bus.publish("page", Page(2)).result(60) != ("2 km", True):
            assert time.monotonic() < end
        assert bus.publish("page", first).result(60) == ("1 m", False)
        """,
    )


def test_global_that_can_no_longer_travel_is_logged_once(run: Run) -> None:
    check(
        run,
        """
        import logging, threading, time

        told = []
        class Keep(logging.Handler):
            def emit(self, record):
                told.append(record.getMessage())
        logging.getLogger("procbus").addHandler(Keep())
        guard = None
        def handler(event):
            return guard is None
        bus.subscribe("n", handler, kind="cpu")
        assert bus.publish("n", 1).result(60)
        guard = threading.Lock()
        end = time.monotonic() + 60
        while not told:
            assert bus.publish("n", 1).result(60) and time.monotonic() < end
        for _ in range(100):
            assert bus.publish("n", 1).result(60)
        assert len(told) == 1 and "'guard' was changed" in told[0], told
        """,
    )


@pytest.mark.slow
def test_a_global_whose_pickling_exits_fails_no_delivery(run: Run) -> None:
    check(
        run,
        """
        import logging, sys, time

        told = []
        class Keep(logging.Handler):
            def emit(self, record):
                told.append(record.getMessage())
        logging.getLogger("procbus").addHandler(Keep())
        class Exits:
            def __reduce__(self):
                sys.exit(3)
        licence = None
        def handler(event):
            return licence is None
        bus.subscribe("n", handler, kind="cpu")
        assert bus.publish("n", 1).result(60)
        licence = Exits()
        end = time.monotonic() + 60
        while not told:
            assert bus.publish("n", 1).result(60) and time.monotonic() < end
        assert bus.publish("n", 1).result(60)
        assert len(told) == 1 and "'licence' was changed" in told[0], told
        assert "SystemExit: 3" in told[0], told
        """,
    )


@pytest.mark.slow
def test_handlers_that_are_methods_of_one_object_share_it_in_a_worker(run: Run) -> None:
    check(
        run,
        """
        class Store:
            def __init__(self, unit):
                self.seen, self.unit = {}, unit
            def put(self, event):
                self.seen[event] = 1
                return self.unit
            def look(self, event):
                return sorted(self.seen)

        store, other = Store("m"), Store("s")
        assert there(store.put, 1) == "m"
        assert there(store.look) == [1]
        assert there(lambda _: sorted(store.seen)) == [1]
        assert there(other.look) == []
        assert store.seen == {}
        other.unit = "min"
        assert there(other.put, 1) == "min"
        """,
    )


def test_handler_that_cannot_travel_is_refused_by_name_when_subscribed(run: Run) -> None:
    check(
        run,
        """
        import functools, socket, sqlite3, threading

        conn, guard, port = sqlite3.connect(":memory:"), threading.Lock(), socket.socket()
        numbers_to_come = (n for n in range(3))
        def helper(event):
            return conn
        class Shared:
            lock = guard
            def method(self, event):
                return port

        def refused(handler, *words):
            try:
                bus.subscribe("x", handler, kind="cpu")
            except SerializationError as error:
                assert all(word in str(error) for word in words), error
            else:
                raise AssertionError(words)

        refused(lambda e: conn, "global variable 'conn'", "sqlite3.Connection", "@resource")
        refused(lambda e: [conn for _ in e], "global variable 'conn'")
        refused(lambda e: helper(e), "global variable 'helper', global variable 'conn'")
        refused(lambda e: guard, "global variable 'guard'", "concurrency=1")
        refused(lambda e: numbers_to_come, "global variable 'numbers_to_come'", "generator")
        refused(lambda e: bus, "global variable 'bus': ", "current().publish")
        refused(lambda e: Shared, "global variable 'Shared'.lock", "concurrency=1")
        refused(Shared().method, "class 'Shared'.lock")
        refused(functools.partial(print, port), "args[0]", "socket")
        refused(functools.partial(helper), ".func, global variable 'conn'")
        """,
    )


@pytest.mark.slow
def test_a_progress_bar_of_tqdm_is_refused_when_it_is_subscribed(run: Run) -> None:
    pytest.importorskip("tqdm")
    check(
        run,
        """
        from tqdm import tqdm

        bar = tqdm(total=3, disable=True)
        try:
            bus.subscribe("x", lambda event: bar.update(), kind="cpu")
        except SerializationError as error:
            assert "global variable 'bar'" in str(error) and "counts in the process" in str(error)
        assert there(lambda _: sum(tqdm(range(3), disable=True))) == 3
        """,
    )


@pytest.mark.slow
def test_a_pool_of_spawned_children_in_a_handler_gets_an_error_for_a_function_of_the_script(
    run: Run,
) -> None:
    check(
        run,
        """
        import pickle

        def square(n):
            return n * n
        def by_name(event):
            try:
                pickle.dumps(square)
            except (pickle.PicklingError, AttributeError):
                return "refused"
        assert there(by_name) == "refused"
        """,
    )


def test_object_from_a_module_is_the_modules_own_in_a_worker_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(
        textwrap.dedent(
            """
            import contextvars, threading
            UNSET = object()
            limit = contextvars.ContextVar("limit", default=1)
            guard = threading.Lock()
            class Tool:
                def __init_subclass__(cls, /, name):
                    cls.tool = name
            def locked(function):
                def wrapper(event):
                    with guard:
                        return function(event)
                return wrapper
            def is_unset(value):
                return value is UNSET
            def limit_there():
                return limit.get()
            """
        )
    )
    check(
        run,
        """
        import beside
        from beside import UNSET, limit

        class Hammer(beside.Tool, name="hammer"):
            pass
        @beside.locked
        def locked(event):
            return event + 1
        def set_limit(event):
            token = limit.set(7)
            found = beside.limit_there()
            limit.reset(token)
            return found
        beside.put_there = PUT = object()

        assert there(lambda _: beside.is_unset(UNSET))
        assert there(set_limit) == 7
        assert there(locked) == 2
        assert there(lambda e: e.tool, Hammer()) == "hammer"
        assert there(lambda e: e is PUT, PUT)
        """,
    )


def test_handlers_and_events_of_modules_loaded_from_a_path(run: Run, tmp_path: Path) -> None:
    plugin = tmp_path / "plugins" / "first.py"
    plugin.parent.mkdir()
    plugin.write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass

            @dataclass
            class Page:
                text: str

            calls = 0

            def count(page: Page) -> tuple[int, int]:
                global calls
                calls += 1
                return words(page.text), calls

            def words(text):
                return len(text.split())
            """
        )
    )
    check(
        run,
        f"""
        import importlib.util, sys, types

        spec = importlib.util.spec_from_file_location("plugins.first", {str(plugin)!r})
        first = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = first
        spec.loader.exec_module(first)
        assert there(first.count, first.Page("to be")) == (2, 1)

        # A class topic, a helper, and the class of a result.
        def longer(page: first.Page):
            return first.Page(page.text + " or not"), first.words(page.text)
        bus.subscribe(first.Page, longer, kind="cpu")
        assert bus.publish(first.Page("to be")).result(60) == (first.Page("to be or not"), 2)
        assert bus.executor("cpu").submit(first.words, "a b c").result(60) == 3

        # A name that a worker would find elsewhere.
        json = types.ModuleType("colorsys")
        exec("def mine(n): return n + 1", vars(json))
        json.__file__ = {str(plugin)!r}
        sys.modules["colorsys"] = json
        assert there(json.mine, 1) == 2
        """,
    )
