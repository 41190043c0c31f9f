"""A shelf: each resource is opened once, closed once, after all that use it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procbus import ProcbusError, resource, use
from procbus.core.resources import Resource
from procbus.core.shelf import MOST_ARGUMENTS, OF_A_BUS, Shelf
from procbus.core.worker import CurrentWorker
from tests.parts import BOUND_S


class Asker:
    """A handler that asks for resources."""

    handler = "shop.work"

    def begin(self) -> Context:
        return Context()

    def end(self) -> None: ...


ASKER = Asker()


class World:
    """Resources that note their steps, and fail when they are told to."""

    def __init__(self, needs: list[list[int]]) -> None:
        self.open: list[int] = []
        #: Numbers in the order of opening, and of closing.
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.failing: set[int] = set()
        self.resources: list[Resource[int]] = []
        for number, needed in enumerate(needs):
            self.resources.append(self._make(number, [self.resources[each] for each in needed]))

    def _make(self, number: int, needed: list[Resource[int]]) -> Resource[int]:
        def opened(**given: int) -> Iterator[int]:
            if number in self.failing:
                raise OSError(number)
            for each in given.values():
                assert each in self.open, "it is open while another uses it"
            self.open.append(number)
            self.opened.append(number)
            yield number
            self.open.remove(number)
            self.closed.append(number)

        made = resource(opened)
        made.needs = tuple((f"a{n}", each) for n, each in enumerate(needed))
        return made


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    count = draw(st.integers(1, 6))
    return [
        draw(st.lists(st.integers(0, number - 1), unique=True, max_size=3)) if number else []
        for number in range(count)
    ]


@settings(deadline=None)
@given(graphs(), st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 5))), max_size=20))
def test_resources_are_opened_once_and_closed_in_reverse_order_whatever_fails(
    needs: list[list[int]], steps: list[tuple[int, set[int]]]
) -> None:
    world = World(needs)
    shelf = Shelf()
    for wanted, world.failing in steps:
        if wanted < len(needs):
            asked = world.resources[wanted]
            with suppress(OSError):
                assert shelf.get(asked, ASKER) == wanted
            assert len(world.open) == len(set(world.open))
    shelf.close()
    shelf.close()
    assert world.closed == world.opened[::-1]
    with pytest.raises(ProcbusError, match="its worker is ending"):
        shelf.get(world.resources[0], ASKER)


def test_threads_that_ask_at_once_get_one_object() -> None:
    begun, go_on = threading.Event(), threading.Event()
    opened: list[object] = []

    @resource(scope="bus")
    def slow() -> Iterator[object]:
        begun.set()
        assert go_on.wait(BOUND_S)
        opened.append(object())
        yield opened[-1]

    shelf = Shelf(OF_A_BUS, shared=True)
    got: list[object] = []
    threads = [
        threading.Thread(target=lambda: got.append(shelf.get(slow, ASKER))) for _ in range(5)
    ]
    for each in threads:
        each.start()
    assert begun.wait(BOUND_S)
    go_on.set()
    for each in threads:
        each.join(BOUND_S)
    assert got == opened * 5
    shelf.close()


def test_thread_that_waited_for_an_opening_that_failed_tries_itself() -> None:
    begun, go_on = threading.Event(), threading.Event()

    @resource(scope="bus")
    def shaky() -> str:
        if not begun.is_set():
            begun.set()
            assert go_on.wait(BOUND_S)
            raise OSError("first")
        return "second"

    shelf = Shelf(OF_A_BUS, shared=True)
    got: list[str] = []

    def ask() -> None:
        try:
            got.append(shelf.get(shaky, ASKER))
        except OSError as error:
            got.append(str(error))

    first = threading.Thread(target=ask)
    first.start()
    assert begun.wait(BOUND_S)
    second = threading.Thread(target=ask)
    second.start()
    go_on.set()
    first.join(BOUND_S)
    second.join(BOUND_S)
    assert sorted(got) == ["first", "second"]
    shelf.close()


def test_resource_that_is_open_only_after_the_close_is_closed_at_once() -> None:
    begun, go_on = threading.Event(), threading.Event()
    steps: list[str] = []

    @resource
    def slow() -> Iterator[str]:
        begun.set()
        assert go_on.wait(BOUND_S)
        steps.append("open")
        yield "slow"
        steps.append("close")

    shelf = Shelf()
    said: list[str] = []

    def ask() -> None:
        try:
            shelf.get(slow, ASKER)
        except ProcbusError as error:
            said.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(BOUND_S)
    shelf.close()
    go_on.set()
    thread.join(BOUND_S)
    assert steps == ["open", "close"]
    assert "its worker is ending" in said[0]


def test_resource_that_waits_for_itself_is_told() -> None:
    shelf = Shelf()

    def opened() -> Any:
        return shelf.get(itself, ASKER)

    itself: Resource[Any] = resource(opened)

    with pytest.raises(ProcbusError, match="whose own opening waits for the handler"):
        shelf.get(itself, ASKER)


def test_resource_is_closed_in_the_context_that_it_was_opened_in() -> None:
    name: ContextVar[str] = ContextVar("name", default="none")

    @resource
    def named() -> Iterator[str]:
        token = name.set("set")
        yield "named"
        name.reset(token)  # raises in another context

    shelf = Shelf()
    assert shelf.get(named, ASKER) == "named"
    assert name.get() == "none"
    shelf.close()


def test_shelf_of_a_forked_child_closes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    @resource
    def opened() -> Iterator[str]:
        yield "opened"
        steps.append("close")

    shelf = Shelf()
    shelf.get(opened, ASKER)
    with monkeypatch.context() as forked:
        forked.setattr("os.getpid", lambda: -1)
        shelf.close()
    assert steps == []
    shelf.close()
    assert steps == ["close"]


def replaced(old: Resource[Any], function: Callable[..., Any]) -> Resource[Any]:
    """A new definition, as it arrives in a worker."""
    made = resource(function) if old.scope == "worker" else resource(scope="bus")(function)
    made.former = (old.token,)
    return made


@pytest.mark.parametrize("shared", [False, True])
def test_new_definition_closes_the_old_object_and_its_users_unless_others_may_use_them(
    shared: bool,
) -> None:
    steps: list[str] = []

    def make(name: str) -> Callable[..., Iterator[str]]:
        def opened(**given: str) -> Iterator[str]:
            steps.append(f"open {name}")
            yield name
            steps.append(f"close {name}")

        return opened

    old = resource(make("old"))
    user = resource(make("user"))
    user.needs = (("given", old),)
    shelf = Shelf(shared=shared)
    shelf.get(user, ASKER)
    shelf.kept["handler"] = {"given": "old"}

    new = replaced(old, make("new"))
    assert shelf.get(new, ASKER) == "new"
    assert shelf.kept == {}

    gone = ["close user", "close old"]
    assert steps == ["open old", "open user", *([] if shared else gone), "open new"]
    shelf.close()
    assert steps[-3:] == ["close new", *gone] if shared else ["open new", "close new"]


def test_handlers_that_come_and_go_are_not_kept_for_ever() -> None:
    shelf = Shelf()
    for number in range(3 * MOST_ARGUMENTS):
        shelf.keep(number, {})
        assert number in shelf.kept
        assert len(shelf.kept) <= MOST_ARGUMENTS


def test_use_names_the_resource_in_a_message() -> None:
    @resource
    def model() -> int:
        return 1

    with pytest.raises(ProcbusError, match=r"use\(model\)"):
        use(model).bit_length()


def test_resource_that_is_late_to_close_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = threading.Event()

    def filter_of(record: logging.LogRecord) -> bool:
        logged.set()
        return True

    monkeypatch.setattr(caplog.handler, "filter", filter_of)

    @resource
    def late() -> Iterator[str]:
        yield "late"
        while not logged.wait(0.05):
            here.shelf.warn_late(1)  # the thread that watches may have been faster than the closing

    here = CurrentWorker(0, late_s=0.01)
    here.shelf.get(late, ASKER)
    here.close()
    assert "late has not closed yet" in caplog.text
