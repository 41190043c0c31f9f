# SPDX-License-Identifier: MIT
"""Topics: when a topic is well formed, and which patterns match which topic."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from procbus.core.errors import TopicError
from procbus.core.introspection import is_function, name_of
from procbus.core.user_objects import short_repr

Topic: TypeAlias = type | str
"""A class (for its instances and its subclasses' instances) or a dotted string, maybe a pattern."""

Topics: TypeAlias = Topic | Sequence[Topic] | None
"""One topic, or a tuple or list of several; None leaves them to the handler's annotation."""


def check_pattern(topic: str) -> None:
    """Check a string that a handler subscribes to, such as ``"order.*"``.

    Args:
        topic: words parted by dots; a word may be ``*`` (one word) or ``#`` (zero or more words).

    Raises:
        TopicError: it is not well formed; the message says what to change.
    """
    for word in _words(topic):
        if word not in ("*", "#") and ("*" in word or "#" in word):
            raise TopicError(
                f"topic {topic!r}: * and # stand for whole words, but {word!r} mixes one with "
                f'other characters; make it a word of its own, as in "order.*" or "order.#"'
            )


def exact(text: Any) -> str:
    """Give the text of a string whose class is the user's own, such as a member of an enum.

    Routing compares topics and keeps them, which would run the methods of that class.
    """
    return text if type(text) is str else str.__str__(text)


def check_concrete(topic: str) -> str:
    """Check a string that an event is published to, such as ``"order.updated"``.

    Args:
        topic: words parted by dots, without ``*`` and ``#``.

    Returns:
        The topic, as a plain string.

    Raises:
        TopicError: it is not well formed, or it is a pattern.
    """
    if issubclass(type(topic), str):
        topic = exact(topic)
    _words(topic)
    if "*" in topic or "#" in topic:
        raise TopicError(
            f"topic {topic!r}: * and # are for subscriptions; publish to a concrete topic, "
            f'such as "order.updated"'
        )
    return topic


def check_class(topic: type) -> None:
    """Check that `issubclass` works with a class, because routing uses it to find handlers.

    Args:
        topic: the class.

    Raises:
        TopicError: it is `typing.Any`, a TypedDict, or a Protocol that cannot be checked.
    """
    if topic is Any:
        raise TopicError("topic Any matches no class; use object to take every event")
    try:
        issubclass(object, topic)
    except TypeError as error:
        raise TopicError(
            f"topic {topic.__qualname__}: events cannot be tested against it ({error}); "
            f"use a class that they are made of or inherit from, or a dotted string"
        ) from error


def topics_in(topic: object) -> tuple[Topic, ...]:
    """Read the `topic` argument of a subscription.

    Args:
        topic: None, a class, a dotted string, or a tuple or list of classes and strings.

    Returns:
        The topics, each once, in the order given; empty for None, which leaves them to the
        annotation of the handler's first parameter.

    Raises:
        TopicError: the argument is none of these, or a topic is not well formed.
    """
    if topic is None:
        return ()
    several = topic if isinstance(topic, tuple | list) else (topic,)
    if not several:
        raise TopicError("an empty list of topics; leave topic out to take it from the annotation")
    return tuple(dict.fromkeys(_checked(each) for each in several))


def same_topic(one: Topic, other: Topic) -> bool:
    """Whether two topics are the same. No comparison of the user's classes is called."""
    if isinstance(one, str):
        return isinstance(other, str) and str.__eq__(one, other)
    return one is other


def without(topics: Iterable[Topic], gone: Iterable[Topic]) -> tuple[Topic, ...]:
    """Return the topics that are not in `gone`, in their order."""
    away = tuple(gone)
    return tuple(each for each in topics if not any(same_topic(each, one) for one in away))


def shown_topics(topics: Iterable[Topic]) -> str:
    """Write topics for people."""
    return ", ".join(repr(t) if isinstance(t, str) else t.__qualname__ for t in topics)


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a pattern takes a topic, as an AMQP topic exchange would.

    Both must be well formed. The time is at most proportional to the number of words of the pattern
    times the number of words of the topic, however many ``#`` there are. All partial matches are
    advanced together, without backtracking (Thompson's simulation of a nondeterministic automaton,
    "Regular Expression Search Algorithm", CACM 11(6), 1968).

    Args:
        pattern: the topic of a subscription; ``*`` is exactly one word, ``#`` is zero or more.
        topic: the topic of an event.
    """
    if "*" not in pattern and "#" not in pattern:
        return pattern == topic
    words = topic.split(".")
    # reached[n]: the part of the pattern read so far can take exactly the first n words.
    reached = [True] + [False] * len(words)
    for part in pattern.split("."):
        if part == "#":
            reached = list(itertools.accumulate(reached, operator.or_))
        else:
            steps = zip(reached, words, strict=False)  # nothing can be read after the last word
            reached = [False, *(before and part in ("*", word) for before, word in steps)]
    return reached[-1]


def _checked(topic: object) -> Topic:
    if issubclass(type(topic), str):
        topic = exact(topic)
        check_pattern(topic)
        return topic
    if isinstance(topic, type):
        check_class(topic)
        return topic
    if is_function(topic):
        raise TopicError(
            f"{name_of(topic)} is given as a topic, but it is a function; the topic comes first, "
            f'as in bus.subscribe("my.topic", function)'
        )
    raise TopicError(
        f"{topic!r} is not a topic; a topic is a class, a dotted string, "
        f'or a tuple of those, such as (MyEvent, "my.topic")'
    )


def _no_topic_to_publish_to(given: object) -> TopicError:
    text = f"a topic to publish to is a dotted string, not {short_repr(given)}"
    if isinstance(given, type):
        return TopicError(
            f"{text}: publish the object alone, as in bus.publish(event); its class is its topic"
        )
    if callable(given):
        return TopicError(f"{text}; bus.call(handler, event) is for one handler")
    return TopicError(f'{text}; the topic comes first, as in bus.publish("my.topic", payload)')


def _words(topic: str) -> list[str]:
    """Split a topic, after the checks that patterns and concrete topics share."""
    if not isinstance(topic, str):
        raise _no_topic_to_publish_to(topic)
    if not topic:
        raise TopicError('an empty topic; write words parted by dots, such as "order.updated"')
    if any(character.isspace() for character in topic):
        raise TopicError(f"topic {topic!r} has white space; part its words by dots alone")
    words = topic.split(".")
    if not words[0] or not words[-1]:
        raise TopicError(f"topic {topic!r} begins or ends with a dot; take that dot away")
    if "" in words:
        raise TopicError(f"topic {topic!r} has an empty word; take one of the two dots away")
    return words
