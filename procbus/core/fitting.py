# SPDX-License-Identifier: MIT
"""Whether a handler can take the events of its topics, by the annotation of its first parameter.

Only a certain misfit is told: a class that no event of the topic is an instance of. Annotations
that say less, such as protocols, abstract classes and `Any`, fit every topic.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from procbus.core.introspection import class_in, element_in, hint_of_first, members_of, module_of
from procbus.core.topic import Topic

#: Classes whose instances a type checker accepts for another class.
_PROMOTED = {
    float: (int,),
    complex: (int, float),
    bytes: (bytearray, memoryview),
}


def problem_of_annotation(
    function: Callable[..., Any], topics: Iterable[Topic], *, in_list: bool = False
) -> str:
    """Say which topic has no event that fits the function's annotation; "" if each topic has some.

    Args:
        function: the function of the handler.
        topics: the topics that were named for it.
        in_list: whether it takes a list of events.
    """
    classes = [topic for topic in topics if isinstance(topic, type)]
    if not classes and not in_list:
        return ""
    hint = hint_of_first(function)
    shown = partial(inspect.formatannotation, base_module=module_of(function))
    wanted = [hint]
    if in_list:
        lists = [each for each in members_of(hint) if _may_be(list, each)]
        if not lists:
            return (
                f"batch= gives it a list of events, but its first parameter is annotated "
                f"{shown(hint)}: annotate it as a list of the class of its events, or leave batch "
                "out"
            )
        wanted = [element_in(each) for each in lists]
    for topic in classes:
        if not any(_may_be(topic, each) for each in wanted):
            name, event = shown(topic), " or ".join(map(shown, wanted))
            return (
                f"it is subscribed to {name}, but its first parameter is annotated {shown(hint)}, "
                f"which no {name} can be; to get each {event}, leave the topic out; to get each "
                f"{name}, annotate the parameter {f'list[{name}]' if in_list else name}"
            )
    return ""


def _may_be(topic: type, hint: object) -> bool:
    """Whether an event of a topic may be what an annotation says."""
    return any(each is None or _may_fit(topic, each) for each in _classes_of(hint))


def _classes_of(hint: object) -> Iterator[type | None]:
    """The classes of an annotation; None for a member that says nothing about the class."""
    for each in members_of(hint):
        if isinstance(each, typing.NewType):
            yield from _classes_of(each.__supertype__)
        elif isinstance(each, typing.TypeVar):
            for one in each.__constraints__ or (each.__bound__,):
                yield from _classes_of(one)
        elif typing.get_origin(each) is typing.Literal:
            yield from map(type, typing.get_args(each))
        else:
            yield class_in(each)


def _may_fit(topic: type, wanted: type) -> bool:
    """Whether an event of a topic may be an instance of a class."""
    if typing.is_typeddict(wanted):
        wanted = dict
    try:
        return (
            _is_open(topic)
            or _is_open(wanted)
            or issubclass(topic, (wanted, *_PROMOTED.get(wanted, ())))
            or issubclass(wanted, topic)
            or _named_alike(topic, wanted)
            or _meet(topic, wanted)
        )
    except Exception:  # noqa: BLE001 - classes may answer as they like
        return True


def _is_open(each: type) -> bool:
    """Whether any class with the same methods may count as its subclass."""
    return inspect.isabstract(each) or typing.Protocol in each.__mro__


def _named_alike(topic: type, wanted: type) -> bool:
    """Whether one of two classes, or a base of it, was defined anew as the other."""
    return _name(topic) in map(_name, wanted.__mro__) or _name(wanted) in map(_name, topic.__mro__)


def _name(each: type) -> tuple[str, str]:
    return each.__module__, each.__qualname__


def _meet(topic: type, wanted: type) -> bool:
    """Whether there is a class that inherits from both."""
    seen = {topic}
    found = [topic]
    while found:
        below: list[type] = type.__subclasses__(found.pop())
        if any(wanted in each.__mro__ for each in below):
            return True
        found += {*below} - seen
        seen.update(below)
    return False
