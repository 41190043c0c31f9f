"""Resources as they are declared: scopes, names, needs, and the refusals."""

from __future__ import annotations

import contextlib
import functools
import inspect
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import pytest

from procbus import EventBus, OptionError, ProcbusError, SubscriptionError, current, resource, use
from procbus.core.handler import make_handler
from procbus.core.resources import Resource, newest_of
from procbus.testing import InlineBus


@resource
def number() -> Iterator[int]:
    yield 7


@resource(scope="event")
def brief() -> int:
    return 1


@resource(scope="bus")
async def client() -> AsyncIterator[str]:
    yield "client"


def add(event: int, given: int = use(number)) -> int:
    return event + given


def test_default_of_a_parameter_shows_the_resource() -> None:
    assert repr(inspect.signature(add).parameters["given"].default) == "use(number)"


def test_handler_called_with_an_explicit_argument_needs_no_bus() -> None:
    assert add(1, 2) == 3


class Model:
    def predict(self, event: int) -> int:
        return event


@resource
def model() -> Model:
    return Model()


def predict(event: int, given: Model = use(model)) -> int:
    return given.predict(event)


def test_handler_called_without_the_argument_says_how_to_call_it() -> None:
    with pytest.raises(ProcbusError, match=r"give the argument too, in place of use\(model\)"):
        predict(1)


def test_topic_is_the_annotation_of_the_first_parameter() -> None:
    assert make_handler(add).topics == make_handler(lambda event: None, int).topics


def test_handler_without_resources_is_called_itself() -> None:
    def plain(event: int) -> None: ...

    assert make_handler(plain).call is plain


def test_resource_of_a_module_travels_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(number)) is number


class Opener:
    def __call__(self) -> Iterator[str]:
        yield "opened"


class AsyncOpener:
    async def __call__(self) -> AsyncIterator[str]:
        yield "opened"


def test_resource_may_be_an_object_that_is_called() -> None:
    plain: Resource[str] = resource(Opener())
    on_loop: Resource[str] = resource(AsyncOpener())

    async def work(event: int, one: str = use(plain), two: str = use(on_loop)) -> str:
        return one + two

    with InlineBus([]) as bus:
        bus.subscribe("t", work)
        assert bus.publish("t", 1).result() == "openedopened"


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (contextmanager(lambda: iter([1])), False),
        (asynccontextmanager(client.function), True),
        (client.function, True),
        (Opener(), False),
        (AsyncOpener(), True),
        (functools.partial(client.function), True),
        (threading.Lock, False),
    ],
)
def test_resource_knows_whether_the_event_loop_opens_it(function: Any, is_async: bool) -> None:
    assert resource(function).is_async == is_async


def test_class_that_is_an_async_context_manager_is_opened_on_the_loop() -> None:
    class Session:
        async def __aenter__(self) -> Session:
            return self

        async def __aexit__(self, *_: object) -> None: ...

    assert resource(Session).is_async


# Refusals.


def test_use_of_something_else_is_refused() -> None:
    with pytest.raises(SubscriptionError, match="decorate the function that opens it"):
        use(add)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scope": "wroker"}, "did you mean worker"),
        ({"eager": 1}, "eager must be True or False"),
        ({"scope": "event", "eager": True}, "cannot be eager"),
    ],
)
def test_bad_option_of_a_resource_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SubscriptionError, match=says):
        resource(**options)


def test_resource_with_a_required_parameter_is_refused() -> None:
    with pytest.raises(SubscriptionError, match="it requires path"):

        @resource
        def table(path: str) -> str:
            return path


def test_resource_that_uses_one_with_a_shorter_life_is_refused() -> None:
    with pytest.raises(SubscriptionError, match="is closed before this one"):

        @resource(scope="bus")
        def whole(part: int = use(brief)) -> int:
            return part


def test_plain_resource_that_uses_an_async_one_is_refused() -> None:
    with pytest.raises(SubscriptionError, match="is async, and only an async resource"):

        @resource(scope="event")
        def plain(part: str = use(client)) -> str:
            return part


def test_plain_handler_that_uses_an_async_resource_is_refused() -> None:
    def plain(event: int, given: str = use(client)) -> None: ...

    with pytest.raises(SubscriptionError, match="make the handler an async def"):
        make_handler(plain)


def test_resource_itself_as_a_default_is_refused() -> None:
    def without_use(event: int, given: Any = number) -> None: ...

    with pytest.raises(SubscriptionError, match=r"write given=use\(number\)"):
        make_handler(without_use)


def test_resource_in_place_of_the_event_is_refused() -> None:
    def nothing(given: int = use(number)) -> None: ...

    with pytest.raises(SubscriptionError, match="takes the event, and no resource"):
        make_handler(nothing, int)


def test_positional_parameter_for_a_resource_is_refused() -> None:
    def positional(event: int, given: int = use(number), /) -> None: ...

    with pytest.raises(SubscriptionError, match="cannot be given by its name"):
        make_handler(positional)


@pytest.mark.parametrize("kind", ["cpu", "auto"])
def test_worker_process_cannot_have_a_resource_of_the_bus(kind: Any) -> None:
    @resource(scope="bus")
    def shared() -> list[int]:
        return []

    @resource(scope="event")
    def above(part: list[int] = use(shared)) -> list[int]:
        return part

    def work(event: int, given: list[int] = use(above)) -> None: ...

    with EventBus([]) as bus, pytest.raises(SubscriptionError, match='give it scope="worker"'):
        bus.subscribe("t", work, kind=kind)


def test_circle_made_by_a_new_definition_is_refused() -> None:
    def first() -> int:
        return 1

    one = resource(first)

    @resource
    def two(part: int = use(one)) -> int:
        return part

    def again(part: int = use(two)) -> int:
        return part

    one.needs = resource(again).needs  # as the same cell, run again with another text

    def work(event: int, given: int = use(two)) -> None: ...

    with pytest.raises(SubscriptionError, match="in a circle"):
        make_handler(work)


# On a bus.


def test_resources_are_closed_in_reverse_order() -> None:
    steps: list[str] = []

    @resource
    def first() -> Iterator[str]:
        steps.append("open first")
        yield "first"
        steps.append("close first")

    @resource
    def second(part: str = use(first)) -> Iterator[str]:
        steps.append(f"open second with {part}")
        yield "second"
        steps.append("close second")

    def work(event: int, given: str = use(second), other: str = use(first)) -> str:
        return f"{given} {other}"

    with InlineBus([]) as bus:
        bus.subscribe("t", work)
        assert [bus.publish("t", 1).result() for _ in range(2)] == ["second first"] * 2
    assert steps == ["open first", "open second with first", "close second", "close first"]


@pytest.mark.parametrize("kind", ["io", "cpu"])
@pytest.mark.parametrize("pickling", [False, True])
def test_inline_bus_gives_fakes(kind: Any, pickling: bool) -> None:
    with InlineBus([], pickling=pickling, resources={number: 40}) as bus:
        bus.subscribe("t", add, kind=kind)
        assert bus.publish("t", 2).result() == 42


def test_inline_bus_opens_a_resource_in_place_of_another() -> None:
    steps: list[str] = []

    @resource
    def fake() -> Iterator[int]:
        steps.append("open")
        yield 1
        steps.append("close")

    with InlineBus([], resources={number: fake}) as bus:
        bus.subscribe("t", add)
        assert bus.publish("t", 2).result() == 3
    assert steps == ["open", "close"]


def test_async_handler_of_an_inline_bus_has_async_resources() -> None:
    steps: list[str] = []

    @resource(scope="bus")
    async def opened() -> AsyncIterator[str]:
        steps.append("open")
        yield "client"
        steps.append("close")

    async def work(event: int, given: str = use(opened), more: int = use(number)) -> str:
        return f"{given} {more}"

    with InlineBus([]) as bus:
        bus.subscribe("t", work)
        assert bus.publish("t", 2).result() == "client 7"
        assert bus.publish("t", 3).result() == "client 7"
        assert steps == ["open"], "it is opened once a bus"
    assert steps == ["open", "close"]


def test_number_of_the_worker_is_0_on_an_inline_bus() -> None:
    with InlineBus([]) as bus:
        bus.subscribe("t", lambda _: current().worker.number)
        assert bus.publish("t", 2).result() == 0


class Undo(Exception):
    pass


@pytest.mark.parametrize("swallows", [False, True])
def test_error_of_the_handler_is_raised_in_the_resources_of_the_event(swallows: bool) -> None:
    seen: list[BaseException] = []

    @resource(scope="event")
    def transaction() -> Iterator[str]:
        try:
            yield "open"
        except Undo as error:
            seen.append(error)
            if not swallows:
                raise

    def work(event: int, given: str = use(transaction)) -> None:
        raise Undo

    with InlineBus([]) as bus:
        bus.subscribe("t", work)
        with pytest.raises(Undo) as raised:
            bus.publish("t", 1).result()
        assert seen == [raised.value], "it counts, whatever the resource does with it"
        bus.dead_letters.clear()


def test_resource_that_fails_to_close_after_a_success_fails_the_attempt() -> None:
    failing = [True]

    @resource(scope="event")
    def transaction() -> Iterator[None]:
        yield
        if failing:
            failing.pop()
            raise Undo("no commit")

    def work(event: int, given: None = use(transaction)) -> str:
        return "done"

    with InlineBus([]) as bus:
        bus.subscribe("t", work, retries=1)
        [delivery] = bus.publish("t", 1).deliveries
        assert delivery.result() == "done"
        assert delivery.attempts == 2
        failing.append(True)
        bus.subscribe("last", work)
        with pytest.raises(Undo) as raised:
            bus.publish("last", 1).result()
        [note] = raised.value.__notes__
        assert "while closing the resource" in note
        bus.dead_letters.clear()


def test_resource_that_fails_to_open_is_named_and_tried_again() -> None:
    failing = [True]

    @resource
    def shaky() -> Iterator[str]:
        if failing:
            failing.clear()
            raise OSError("not there")
        yield "here"

    def work(event: int, given: str = use(shaky)) -> str:
        return given

    with InlineBus([]) as bus:
        bus.subscribe("t", work)
        with pytest.raises(OSError, match="not there") as raised:
            bus.publish("t", 1).result()
        [note] = raised.value.__notes__
        assert "while opening the resource" in note
        assert "shaky" in note
        assert "work" in note
        assert bus.publish("t", 1).result() == "here"
        bus.dead_letters.clear()


@pytest.mark.parametrize("pickling", [False, True])
def test_traceback_of_an_opening_that_failed_leaves_out_the_way_to_it(pickling: bool) -> None:
    @resource
    def shaky() -> Iterator[str]:
        raise OSError("not there")
        yield "here"

    def work(event: int, given: str = use(shaky)) -> str:
        return given

    with InlineBus([], pickling=pickling) as bus:
        bus.subscribe("t", work, kind="cpu")
        bus.publish("t", 1)
        [letter] = bus.dead_letters
        [stack] = letter.stacks
        bus.dead_letters.clear()
    assert "in shaky" in stack
    assert "shelf.py" not in stack
    assert "contextlib.py" not in stack


def test_resource_that_fails_to_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @resource
    def shaky() -> Iterator[str]:
        yield "here"
        raise OSError("stuck")

    def work(event: int, given: str = use(shaky)) -> str:
        return given

    with InlineBus([]) as bus:
        bus.subscribe("t", work)
        bus.publish("t", 1)
    assert "shaky failed to close" in caplog.text
    assert "stuck" in caplog.text


def test_context_manager_is_entered_and_left() -> None:
    steps: list[str] = []

    class Manager(contextlib.AbstractContextManager[str]):
        def __enter__(self) -> str:
            steps.append("enter")
            return "value"

        def __exit__(self, *_: object) -> None:
            steps.append("exit")

    def opened() -> AbstractContextManager[str]:
        return Manager()

    def work(
        event: int, one: str = use(resource(Manager)), two: str = use(resource(opened))
    ) -> str:
        return one + two

    with InlineBus([]) as bus:
        bus.subscribe("t", work)
        assert bus.publish("t", 1).result() == "valuevalue"
    assert steps == ["enter", "enter", "exit", "exit"]


def test_fake_for_something_else_is_refused() -> None:
    with pytest.raises(ProcbusError, match="takes resources"):
        InlineBus([], resources={add: 1})


def test_replacements_of_an_inline_bus_are_a_dict() -> None:
    listed: Any = [number]
    with pytest.raises(OptionError, match="takes a dict from each resource to its replacement"):
        InlineBus([], resources=listed)


def test_async_replacement_of_a_plain_resource_is_refused() -> None:
    @resource
    async def fake() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(OptionError, match=r"cannot replace .*number.*decorate a plain function"):
        InlineBus([], resources={number: fake})


def test_two_resources_made_by_one_definition_stay_two() -> None:
    def make(value: int) -> Resource[int]:
        @resource
        def made() -> int:
            return value

        return made

    one, two = make(1), make(2)

    assert newest_of(one) is one
    assert newest_of(two) is two
