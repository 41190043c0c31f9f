# SPDX-License-Identifier: MIT
"""The subscriptions of one bus: the shared registry, its own handlers, and departures."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from procbus.core.errors import NoSuchHandler
from procbus.core.handler import make_handler
from procbus.dispatch.addressing import choose
from procbus.routing.registry import Registry
from procbus.routing.subscriptions import Subscriptions
from tests.parts import BOUND_S, FakeLane, double, handle


def subscriptions_of(shared: Registry | None = None, own: Any = ()) -> Subscriptions:
    lane = FakeLane()
    return Subscriptions(shared, own, lambda _: lane)


def names(subscriptions: Subscriptions) -> list[str]:
    return [s.handler.name for s in subscriptions.all()]


def test_shared_handlers_come_first_then_its_own_in_order():
    shared = Registry()
    subscriptions = subscriptions_of(shared, [make_handler(handle, "a", name="own")])
    assert names(subscriptions) == ["own"]
    shared.add(make_handler(handle, "a", name="shared"))
    subscriptions.add(make_handler(handle, "a", name="later"))
    assert names(subscriptions) == ["shared", "own", "later"]


def test_a_subscription_and_its_counters_outlive_changes():
    subscriptions = subscriptions_of(None, [make_handler(handle, "a")])
    (before,) = subscriptions.all()
    before.published = 5
    subscriptions.add(make_handler(double, "a"))
    assert subscriptions.all()[0] is before


def test_both_sides_of_a_handler_that_moved_are_counted_once_each():
    subscriptions = subscriptions_of(None, [make_handler(handle, "a", kind="auto")])
    [switch] = subscriptions.switches()
    before = subscriptions.counted()
    switch.move("because")
    moved = subscriptions.counted()  # events still go to the side before
    subscriptions.reroute()
    after = subscriptions.counted()
    assert [[side.handler.kind for side in each] for each in (before, moved, after)] == [
        ["io"],
        ["io", "cpu"],
        ["cpu", "io"],
    ]


def test_a_router_that_was_taken_stays_as_it_was():
    subscriptions = subscriptions_of(None, [make_handler(handle, "a")])
    router = subscriptions.routes()
    assert subscriptions.routes() is router
    subscriptions.add(make_handler(double, "a"))
    assert len(router.match(1, "a")) == 1
    assert len(subscriptions.routes().match(1, "a")) == 2


def test_leaving_a_shared_registry_concerns_this_bus_alone():
    shared = Registry()
    shared.add(make_handler(handle, "a"))
    one, other = subscriptions_of(shared), subscriptions_of(shared)
    one.remove(handle)
    assert one.all() == ()
    assert len(other.all()) == 1
    assert len(shared.handlers) == 1
    with pytest.raises(NoSuchHandler):
        one.remove(handle)
    shared.add(make_handler(handle, "b"))  # subscribed anew
    assert len(one.all()) == 1


def test_removing_takes_away_shared_and_own_ones_of_a_function():
    shared = Registry()
    shared.add(make_handler(handle, "a"))
    subscriptions = subscriptions_of(
        shared, [make_handler(handle, "b"), make_handler(double, "b", name="double")]
    )
    subscriptions.remove(handle)
    assert names(subscriptions) == ["double"]


@given(st.lists(st.tuples(st.sampled_from(["shared", "own", "leave"]), st.integers(0, 3))))
def test_router_has_exactly_the_present_subscriptions_after_any_changes(changes):
    def function_of(number: int) -> Any:
        return lambda event: number

    functions = [function_of(n) for n in range(4)]
    shared = Registry()
    subscriptions = subscriptions_of(shared)
    model: dict[str, list[int]] = {"shared": [], "own": []}  # numbers of functions
    for change, number in changes:
        if change == "leave":
            if number in model["shared"] + model["own"]:
                subscriptions.remove(functions[number])
            else:
                with pytest.raises(NoSuchHandler):
                    subscriptions.remove(functions[number])
            model = {where: [n for n in there if n != number] for where, there in model.items()}
        else:
            made = make_handler(functions[number], "a")
            shared.add(made) if change == "shared" else subscriptions.add(made)
            if change == "shared" or number not in model["own"]:
                model[change].append(number)
        found = subscriptions.routes().match(1, "a")
        # An event goes once to a function, by its last subscription: shared before own ones.
        expected = list(dict.fromkeys(reversed(model["shared"] + model["own"])))[::-1]
        assert [functions.index(s.handler.function) for s in found] == expected


def test_threads_that_subscribe_and_publish_miss_nothing():
    subscriptions = subscriptions_of(Registry())
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait(BOUND_S)
        for count in range(50):
            made = make_handler(handle, f"t{number}.{count}")
            subscriptions.add(made)
            found = subscriptions.routes().match(1, f"t{number}.{count}")
            assert [s.handler for s in found] == [made]

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, number) for number in range(4)]:
            future.result(BOUND_S)
    assert len(subscriptions.all()) == 200


@example(
    [(0, "x", {"a.b"}, None), (0, "x", {"a.b"}, True), (0, "x", {"a.b"}, None)],
    "a.b",
)
@example(
    [(0, "y", {"a.b", "a.*"}, None), (0, "y", {"a.b"}, True), (0, "y", {"a.b"}, None)],
    "a.b",
)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),  # the function
            st.sampled_from(["x", "y"]),  # its name
            st.sets(st.sampled_from(["a.b", "a.*", "#", int, object]), min_size=1),
            st.sampled_from([None, True, False]),  # the answer of `where`
        ),
        max_size=8,
    ),
    st.sampled_from([None, "a.b", "c"]),
)
def test_an_event_goes_to_each_function_by_the_last_subscription_that_takes_it(made, topic):
    functions = [lambda event, n=n: n for n in range(3)]
    subscriptions = subscriptions_of()
    handlers = []
    for number, name, topics, answer in made:
        where = None if answer is None else lambda event, answer=answer: answer
        handlers.append(
            make_handler(functions[number], list(topics), name=f"{number}{name}", where=where)
        )
        subscriptions.add(handlers[-1])
    taken_by = {"a.b": {"a.b", "a.*", "#"}, "c": {"#"}, None: {int, object}}[topic]
    expected = {}
    for handler, (_, _, topics, answer) in zip(handlers, made, strict=True):
        if topics & taken_by and answer is not False:
            expected[handler.name] = handler
    chosen, broken = choose(subscriptions.routes().match(1, topic), 1)
    assert broken == []
    assert {each.handler.name for each in chosen} == set(expected)
    assert len(chosen) == len(expected)
    for each in chosen:
        # One that is just like it may have been there before, and stays in its place.
        last = expected[each.handler.name]
        assert each.handler is last or (each.handler.where, last.where) == (None, None)
