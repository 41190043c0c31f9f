# SPDX-License-Identifier: MIT
"""Topics: well-formed ones, and AMQP matching against a model."""

from typing import Any, Protocol, TypedDict, runtime_checkable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.errors import SubscriptionError, TopicError
from procbus.core.topic import check_class, check_concrete, check_pattern, matches, topics_in

words = st.sampled_from(["a", "b", "order"])
topics = st.lists(words, min_size=1, max_size=6).map(".".join)
patterns = st.lists(words | st.sampled_from(["*", "#"]), min_size=1, max_size=6).map(".".join)


def model(pattern: list[str], topic: list[str]) -> bool:
    """AMQP matching by its definition: plain recursion over the words."""
    if not pattern:
        return not topic
    if pattern[0] == "#":
        return any(model(pattern[1:], topic[skipped:]) for skipped in range(len(topic) + 1))
    return bool(topic) and pattern[0] in ("*", topic[0]) and model(pattern[1:], topic[1:])


@given(patterns, topics)
def test_matches_agrees_with_the_definition(pattern: str, topic: str):
    assert matches(pattern, topic) == model(pattern.split("."), topic.split("."))


@pytest.mark.parametrize(
    ("pattern", "topic", "taken"),
    [
        ("order.updated", "order.updated", True),
        ("order.updated", "order.deleted", False),
        ("order.updated", "order.updated.twice", False),
        ("order.*", "order.updated", True),
        ("order.*", "order", False),
        ("order.*", "order.updated.twice", False),
        ("*.updated", "order.updated", True),
        ("order.#", "order", True),
        ("order.#", "order.updated.twice", True),
        ("order.#", "orders", False),
        ("#", "anything.at.all", True),
        ("#.updated", "updated", True),
        ("a.#.b", "a.b", True),
        ("a.#.b", "a.b.c.b", True),
        ("a.#.b", "a.b.c", False),
        ("#.*", "a", True),
        ("*.#.*", "a", False),
        ("a+b.*", "aab.c", False),
    ],
)
def test_matches_as_an_amqp_topic_exchange(pattern: str, topic: str, taken: bool):
    assert matches(pattern, topic) is taken


def test_many_hashes_do_not_backtrack():
    # By backtracking this would take longer than any time limit.
    assert not matches(".".join(["#", "a"] * 30 + ["z"]), ".".join(["a"] * 200))


@given(patterns)
def test_every_well_formed_pattern_is_accepted(pattern: str):
    check_pattern(pattern)


@given(topics)
def test_every_topic_without_wildcards_is_concrete(topic: str):
    check_concrete(topic)


@pytest.mark.parametrize("check", [check_pattern, check_concrete])
@pytest.mark.parametrize(
    ("topic", "advice"),
    [
        ("", "empty topic"),
        ("a..b", "empty word"),
        (".a", "begins or ends with a dot"),
        ("a.", "begins or ends with a dot"),
        (".", "begins or ends with a dot"),
        ("a b", "white space"),
        ("a.b\n", "white space"),
        (" ", "white space"),
        (7, "dotted string, not 7"),
        (None, "dotted string, not None"),
    ],
)
def test_a_malformed_topic_is_refused_with_the_reason(check: Any, topic: Any, advice: str):
    with pytest.raises(TopicError, match=advice):
        check(topic)


@pytest.mark.parametrize("topic", ["a.b*", "*a", "a.##", "a.*#.b"])
def test_a_wildcard_inside_a_word_is_refused_in_a_pattern(topic: str):
    with pytest.raises(TopicError, match="stand for whole words"):
        check_pattern(topic)


@pytest.mark.parametrize("topic", ["*", "#", "order.*", "order.#", "a.b*"])
def test_a_pattern_cannot_be_published_to(topic: str):
    with pytest.raises(TopicError, match="publish to a concrete topic"):
        check_concrete(topic)


def test_a_topic_error_is_a_subscription_error():
    assert issubclass(TopicError, SubscriptionError)


class Named(Protocol):
    name: str


@runtime_checkable
class Closable(Protocol):
    def close(self) -> None: ...


class Row(TypedDict):
    id: int


def test_a_class_that_issubclass_can_test_is_a_topic():
    for topic in (int, object, Closable):
        check_class(topic)


@pytest.mark.parametrize("topic", [Named, Row])
def test_a_class_that_issubclass_cannot_test_is_refused(topic: type):
    with pytest.raises(TopicError, match=f"topic {topic.__name__}: events cannot be tested"):
        check_class(topic)


def test_any_is_refused_in_favour_of_object():
    any_: Any = Any
    with pytest.raises(TopicError, match="use object"):
        check_class(any_)


def test_topics_are_a_class_or_a_string_or_several_each_once():
    assert topics_in(int) == (int,)
    assert topics_in("a.*") == ("a.*",)
    assert topics_in([int, "a.*", int, "a.*", str]) == (int, "a.*", str)
    assert topics_in((int, str)) == (int, str)


def test_no_topic_leaves_it_to_the_annotation():
    assert topics_in(None) == ()


@pytest.mark.parametrize("topic", [7, b"a", int | str, list[int], {"a"}, [7], [("a",)], [None]])
def test_object_that_is_no_topic_is_refused(topic: object):
    with pytest.raises(TopicError, match="is not a topic"):
        topics_in(topic)


def test_an_empty_list_of_topics_is_refused():
    with pytest.raises(TopicError, match="empty list"):
        topics_in([])


def test_each_of_several_topics_is_checked():
    with pytest.raises(TopicError, match="empty word"):
        topics_in([int, "a..b"])
    with pytest.raises(TopicError, match="cannot be tested"):
        topics_in((int, Named))


def test_error_for_a_function_as_topic_names_the_order():
    def handle(event: int) -> None: ...

    with pytest.raises(TopicError, match=r"handle is given as a topic.*the topic comes first"):
        topics_in(handle)
