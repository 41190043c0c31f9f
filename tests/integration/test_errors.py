"""Objects that cannot travel, and exceptions that come back: each fails its own delivery alone."""

import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, OutcomeKind, SerializationError
from procbus.core.user_objects import words_of
from tests.integration.helpers import PATIENCE_S
from tests.matrix import quick_first


@dataclass
class Rows:
    rows: list[Any]


class Picky(Exception):
    """Pickles, and does not unpickle: its constructor takes more than its arguments."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class Locked(Exception):
    """Does not pickle."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Named(Exception):
    """`name` is looked at for ImportErrors: here it cannot travel."""

    def __init__(self) -> None:
        super().__init__("named")
        self.name = threading.Lock()


class Impostor(Exception):
    """Unpickles as something that is no exception."""

    def __reduce__(self):
        return str, ("not an exception",)


class OnlyThere:
    """Unpickles in the process that made it, and nowhere else."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["pid"] != os.getpid():
            raise ValueError("only there")
        self.__dict__ = state


class OnlyThereError(Exception):
    def __init__(self) -> None:
        super().__init__("only there")
        self.part = OnlyThere()


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", abs, kind="cpu")
        yield bus


def among_others(bus: EventBus, topic: str, event: Any) -> BaseException:
    """Publish the event in the middle of others that succeed; give its error."""
    bus.publish("n", -1).result(PATIENCE_S)
    before = [bus.publish("n", -n) for n in range(20)]
    receipt = bus.publish(topic, event)
    after = [bus.publish("n", -n) for n in range(20)]
    assert [r.result(PATIENCE_S) for r in before + after] == [*range(20)] * 2
    assert receipt.wait(PATIENCE_S)
    outcome = receipt.deliveries[0].outcome
    assert outcome is not None
    assert outcome.kind is OutcomeKind.RAISED
    assert outcome.error is not None
    assert bus.stats().lanes["cpu"].restarts == 0
    return outcome.error


def test_an_event_that_does_not_pickle_is_named_to_the_part_at_fault(bus: EventBus) -> None:
    bus.subscribe("rows", lambda event: None, kind="cpu")
    error = among_others(bus, "rows", Rows([1, 2, {"a": threading.Lock()}]))
    assert isinstance(error, SerializationError)
    assert error.path == "event.rows[2]['a']"
    assert "event.rows[2]['a']" in str(error)
    assert error.__cause__ is None, "the message has it"


def test_an_event_of_a_module_that_only_the_parent_has_travels_by_value(bus: EventBus) -> None:
    module = types.ModuleType("module_without_a_file")
    exec("class Thing:\n    def __init__(self, n): self.n = n", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        bus.subscribe("thing", lambda thing: thing.n, kind="cpu")
        receipt = bus.publish("thing", module.Thing(7))
        assert receipt.wait(PATIENCE_S)
        error = receipt.deliveries[0].exception()
        if error is None:
            assert receipt.result() == 7
        else:
            assert isinstance(error, SerializationError)
            assert "module_without_a_file" in str(error)
            assert error.path is not None
            assert error.path.startswith("event")
        assert bus.publish("n", -3).result(PATIENCE_S) == 3
    finally:
        del sys.modules[module.__name__]


def test_an_event_whose_module_is_gone_from_disk_is_named(bus: EventBus, tmp_path: Path) -> None:
    file = tmp_path / "module_that_vanishes.py"
    file.write_text("class Thing:\n    pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import module_that_vanishes  # type: ignore[import-not-found]

        file.unlink()
        bus.subscribe("rows", lambda event: None, kind="cpu")
        error = among_others(bus, "rows", Rows([0, module_that_vanishes.Thing()]))
        assert isinstance(error, SerializationError)
        assert "module_that_vanishes" in str(error)
        assert error.path is not None
        assert error.path.startswith("event.rows[1]")
        assert "ModuleNotFoundError" in str(error)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("module_that_vanishes", None)


def test_a_result_that_does_not_pickle_is_named_to_the_part_at_fault(bus: EventBus) -> None:
    bus.subscribe("make", lambda n: {"open": [n, threading.Lock()]}, kind="cpu")
    error = among_others(bus, "make", 1)
    assert isinstance(error, SerializationError)
    assert error.path == "result['open'][1]"
    assert "cannot travel back" in str(error)


def test_result_that_does_not_unpickle_in_the_parent_fails_its_delivery(bus: EventBus) -> None:
    bus.subscribe("make", lambda n: OnlyThere(), kind="cpu")
    error = among_others(bus, "make", 1)
    assert isinstance(error, SerializationError)
    assert "could not be loaded in this process: ValueError: only there" in str(error)
    assert isinstance(error.__cause__, ValueError)


def test_an_exception_comes_back_as_itself_with_the_traceback_of_the_worker(bus: EventBus) -> None:
    def inner(n: int) -> None:
        try:
            raise KeyError("inside")
        except KeyError as error:
            raise ValueError(f"bad {n}") from error

    def outer(n: int) -> None:
        inner(n)

    bus.subscribe("fail", outer, kind="cpu")
    error = among_others(bus, "fail", 5)
    assert type(error) is ValueError
    assert error.args == ("bad 5",)
    text = str(error.__cause__)
    assert "in outer" in text
    assert "in inner" in text
    assert "KeyError: 'inside'" in text
    assert "direct cause" in text
    assert "worker.py" not in text


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda: Picky(1, "reason"), Picky, "1: reason"),
        (Locked, Locked, "holds a lock"),
        (Named, Named, "named"),
        (Unspeakable, Unspeakable, "(its message cannot be read)"),
        (Impostor, Impostor, ""),
        (OnlyThereError, SerializationError, "OnlyThereError: only there"),
    ],
    ids=["picky", "locked", "named", "unspeakable", "impostor", "only there"],
)
def test_an_exception_comes_back_as_itself_or_as_one_that_names_it(
    bus: EventBus, make, kind: type[BaseException], said: str
) -> None:
    def fail(make: Any) -> None:
        raise make()

    bus.subscribe("fail", fail, kind="cpu")
    error = among_others(bus, "fail", make)
    assert type(error) is kind
    assert said in words_of(error)
    assert "raise make()" in str(error.__cause__)


@dataclass(frozen=True)
class Frozen(Exception):
    code: str


class Hidden(Exception):
    """The cause of the error is never seen."""

    @property
    def __cause__(self) -> None:  # type: ignore[override]
        return None


class Untrue(Exception):
    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


class Alone(Exception):
    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")

    __hash__ = None  # type: ignore[assignment]


class Lying(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise ValueError("not told")


class Noteless(Exception):
    @property
    def __notes__(self) -> Any:  # type: ignore[override]
        raise SystemExit("no notes")


class Exiting(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


@pytest.mark.parametrize("retries", quick_first([0, 2]))
@pytest.mark.parametrize(
    "kind", quick_first([Lying, Exiting, Hidden, Frozen, Untrue, Alone, Noteless], 3)
)
def test_hostile_exception_harms_no_other_delivery(
    bus: EventBus, kind: Callable[[str], Exception], retries: int
) -> None:
    def fail(_: Any) -> None:
        raise kind("x")

    bus.subscribe("fail", fail, kind="cpu", retries=retries, backoff=0)
    told = among_others(bus, "fail", 1)
    assert type(told) is kind
    (letter,) = bus.dead_letters
    assert letter.attempts == 1 + retries
    assert "fail" in str(letter)
    assert "raise kind" in letter.stacks[-1]


class PicklingExits:
    """As `pytest.fail()` or a panic of Rust code would: it raises no Exception."""

    def __reduce__(self) -> Any:
        raise SystemExit(3)


class Gone:
    """A proxy whose connection is gone."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("not connected")


class Unshown:
    def __repr__(self) -> str:
        raise ValueError("too long to be shown")


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (PicklingExits, "event"),
        (lambda: {Unshown(): PicklingExits()}, "event[<Unshown instance>]"),
        (Gone, "event"),
        (lambda: [1, Gone()], "event[1]"),
    ],
    ids=["pickling exits", "a key that cannot be shown", "a proxy", "a proxy inside"],
)
def test_a_poisonous_event_fails_alone(bus: EventBus, make: Callable[[], Any], path: str) -> None:
    bus.subscribe("any", id, kind="cpu")
    error = among_others(bus, "any", make())
    assert isinstance(error, SerializationError)
    assert re.sub(" at 0x[0-9a-f]+", "", error.path or "") == path


def test_a_result_whose_pickling_exits_fails_alone(bus: EventBus) -> None:
    bus.subscribe("make", lambda n: [n, PicklingExits()], kind="cpu")
    error = among_others(bus, "make", 1)
    assert isinstance(error, SerializationError)
    assert error.path == "result[1]"
    assert "SystemExit: 3" in str(error)


def test_a_huge_exception_comes_back_whole(bus: EventBus) -> None:
    def fail(size: int) -> None:
        raise ValueError("x" * size)

    bus.subscribe("fail", fail, kind="cpu")
    error = among_others(bus, "fail", 3_000_000)
    assert type(error) is ValueError
    assert error.args == ("x" * 3_000_000,)


def test_an_exception_group_comes_back_as_a_group(bus: EventBus) -> None:
    def fail(n: int) -> None:
        raise ExceptionGroup("two", [ValueError(n), TypeError(n)])

    bus.subscribe("fail", fail, kind="cpu")
    error = among_others(bus, "fail", 3)
    assert isinstance(error, ExceptionGroup)
    assert [type(e) for e in error.exceptions] == [ValueError, TypeError]


def test_recursion_without_end_is_an_error_of_its_handler(bus: EventBus) -> None:
    def fall(n: int) -> int:
        return fall(n + 1)

    bus.subscribe("fall", fall, kind="cpu")
    assert isinstance(among_others(bus, "fall", 0), RecursionError)


def test_an_event_too_deep_to_pickle_fails_alone(bus: EventBus) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    bus.subscribe("deep", lambda event: None, kind="cpu")
    try:
        assert isinstance(among_others(bus, "deep", deep), SerializationError | RecursionError)
    finally:
        while deep:
            deep = deep.pop()


def test_a_handler_whose_module_does_not_import_in_a_worker_fails_each_delivery(
    bus: EventBus, tmp_path: Path
) -> None:
    file = tmp_path / "handler_for_the_script_alone.py"
    file.write_text("def handle(event):\n    return event\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import handler_for_the_script_alone  # type: ignore[import-not-found]

        file.write_text('raise ImportError("not in a worker")')
        bus.subscribe("gone", handler_for_the_script_alone.handle, kind="cpu")
        for _ in range(2):
            error = among_others(bus, "gone", 1)
            assert isinstance(error, SerializationError)
            assert "could not be loaded in a worker process" in str(error)
            assert "handler_for_the_script_alone" in str(error)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("handler_for_the_script_alone", None)


def test_the_parent_survives_a_result_whose_loading_exits(bus: EventBus) -> None:
    class Exits:
        def __reduce__(self):
            return sys.exit, (3,)

    bus.subscribe("make", lambda n: Exits(), kind="cpu")
    receipt = bus.publish("make", 1)
    assert receipt.wait(PATIENCE_S)
    assert receipt.deliveries[0].exception() is not None
    assert bus.publish("n", -3).result(PATIENCE_S) == 3
