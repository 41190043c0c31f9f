# SPDX-License-Identifier: MIT
"""Routing against a plain model, and routes that the caches must not change."""

import abc
import re
from collections.abc import Hashable, Sized
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.errors import TopicError
from procbus.core.topic import Topic
from procbus.routing.router import CACHE_LIMIT, Router


class Base: ...


class Left(Base): ...


class Right(Base): ...


class Both(Left, Right):
    def __len__(self) -> int:
        return 2


class Registered(abc.ABC):  # noqa: B024 - nothing to override: classes register
    ...


Registered.register(Left)


@dataclass(frozen=True)
class Typed(Base):
    event_type: Any


class Silent:
    @property
    def event_type(self) -> str:
        raise AttributeError("not known yet")


class Broken:
    @property
    def event_type(self) -> str:
        raise ValueError("broken")


CLASSES = (Base, Left, Right, Both, Registered, Typed, Silent, Sized, Hashable, object, int, bool)

words = st.sampled_from(["a", "b"])
strings = st.lists(words, min_size=1, max_size=4).map(".".join)
patterns = st.lists(words | st.sampled_from(["*", "#"]), min_size=1, max_size=4).map(".".join)
topics = st.lists(st.sampled_from(CLASSES) | patterns, min_size=1, max_size=4).map(tuple)
subscriptions = st.lists(topics, max_size=6)
events: st.SearchStrategy[object] = st.one_of(
    st.sampled_from([Base(), Left(), Right(), Both(), Silent(), True, 7, "a", b"", [], None]),
    st.builds(Typed, strings | st.sampled_from([None, 7, [], b"a"])),
)
publications = st.lists(st.tuples(events, st.none() | strings), min_size=1, max_size=8)


def regex(pattern: str) -> str:
    """Write an AMQP pattern as a regular expression over a topic that begins with a dot."""
    word = r"\.[^.]+"
    known = {"*": word, "#": f"(?:{word})*"}
    return "".join(known.get(part, re.escape(f".{part}")) for part in pattern.split("."))


def model(subscribed: list[tuple[Topic, ...]], event: object, topic: str | None) -> tuple[int, ...]:
    """Route by a plain scan: the number of each subscription that takes the event."""
    string = topic if topic is not None else getattr(event, "event_type", None)
    taken = []
    for number, of_one in enumerate(subscribed):
        for each in of_one:
            if isinstance(each, str):
                takes = isinstance(string, str) and bool(re.fullmatch(regex(each), f".{string}"))
            else:
                takes = topic is None and isinstance(event, each)
            if takes:
                taken.append(number)
                break
    return tuple(taken)


@given(subscriptions, publications)
def test_routing_agrees_with_a_plain_scan_with_cold_and_warm_caches(
    subscribed: list[tuple[Topic, ...]], published: list[tuple[object, str | None]]
):
    router = Router(enumerate(subscribed))
    for event, topic in published * 2:
        assert router.match(event, topic) == model(subscribed, event, topic)


def test_a_class_takes_instances_of_subclasses_and_of_registered_classes():
    router = Router([("base", (Base,)), ("abc", (Registered,)), ("sized", (Sized,))])
    assert router.match(Base(), None) == ("base",)
    assert router.match(Left(), None) == ("base", "abc")
    assert router.match(Both(), None) == ("base", "abc", "sized")


def test_a_target_with_several_matching_topics_is_given_once():
    router = Router([("all", (Left, Base, "a.*", "#")), ("other", ("a.b",))])
    assert router.match(Typed("a.b"), None) == ("all", "other")
    assert router.match(Left(), None) == ("all",)
    assert router.match(None, "a.b") == ("all", "other")


def test_targets_come_in_order_of_subscription_for_any_pattern():
    router = Router([(3, ("a",)), (1, (Base,)), (2, ("#",)), (0, (object,))])
    assert router.match(Typed("a"), None) == (3, 1, 2, 0)


def test_an_explicit_topic_alone_decides():
    router = Router([("class", (Typed,)), ("type", ("a",)), ("topic", ("b",))])
    assert router.match(Typed("a"), "b") == ("topic",)
    assert router.match(Typed("a"), None) == ("class", "type")


def test_the_topic_can_be_left_out():
    assert Router([("all", (object,))]).match(7) == ("all",)


def test_targets_need_not_be_hashable():
    target: list[int] = []
    assert Router([(target, ("a", int))]).match(7)[0] is target


def test_an_event_type_of_a_string_enumeration_routes_by_its_value():
    class Kind(StrEnum):
        MADE = "order.made"

    router = Router([("order", ("order.*",))])
    assert router.match(Typed(Kind.MADE), None) == ("order",)
    assert router.match(Typed("order.made"), None) == ("order",)
    assert router.match(None, Kind.MADE) == ("order",)


@pytest.mark.parametrize("event_type", ["", "a..b", "a.*", " "])
def test_a_malformed_event_type_is_refused_each_time(event_type: str):
    router = Router([("a", ("a",))])
    for _ in range(2):
        with pytest.raises(TopicError):
            router.match(Typed(event_type), None)


@pytest.mark.parametrize("topic", ["", "a..b", "a.*", "#", 7, Base, [], ("a",), (Base, "a")])
def test_a_malformed_topic_is_refused_each_time(topic: Any):
    router = Router([("all", (object, "#"))])
    router.match(Base(), None)  # the targets remembered for classes must not answer for topics
    router.match(Typed("a"), None)
    for _ in range(2):
        with pytest.raises(TopicError):
            router.match(Base(), topic)


def test_a_property_that_raises_attribute_error_counts_as_no_event_type():
    assert Router([("class", (Silent,)), ("type", ("#",))]).match(Silent(), None) == ("class",)


def test_any_other_error_of_a_property_reaches_the_publisher():
    with pytest.raises(ValueError, match="broken"):
        Router([("type", ("#",))]).match(Broken(), None)


def test_event_type_is_not_looked_up_without_string_subscriptions():
    assert Router([("class", (Broken,))]).match(Broken(), None) == ("class",)


def test_topic_strings_without_end_are_routed_right_when_the_caches_overflow():
    router = Router([("some", ("*.x",)), ("all", ("#",)), ("class", (Typed,))])
    for number in range(CACHE_LIMIT + 10):
        assert router.match(None, f"{number}.x") == ("some", "all")
        assert router.match(Typed(f"{number}.x"), None) == ("some", "all", "class")
    assert router.match(None, "0.x") == ("some", "all")


def test_topic_strings_without_end_do_not_take_memory_without_end():
    class Text(str):
        """A string that counts how many of it are alive."""

        __slots__ = ()
        alive = 0

        def __new__(cls, value: str) -> "Text":
            cls.alive += 1
            return super().__new__(cls, value)

        def __del__(self) -> None:
            Text.alive -= 1

    router = Router([("all", ("#",))])
    for number in range(2 * CACHE_LIMIT):
        router.match(None, Text(f"t.{number}"))
        router.match(Typed(Text(f"e.{number}")), None)
        assert 0 < Text.alive <= 2 * CACHE_LIMIT
