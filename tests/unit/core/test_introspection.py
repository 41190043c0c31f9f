# SPDX-License-Identifier: MIT
"""Topics from annotations, and the names of functions."""

import functools
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NewType, Optional, TypeVar, Union

import pytest

from procbus.core.errors import SubscriptionError
from procbus.core.introspection import module_of, name_of, signature_of, topics_of

if typing.TYPE_CHECKING:
    from decimal import Decimal

E = TypeVar("E")
UserId = NewType("UserId", int)


@dataclass
class Made:
    id: int


@dataclass
class Gone:
    id: int


def takes_made(event: Made) -> None: ...
def takes_a_union(event: Made | Gone) -> None: ...
def takes_an_old_union(event: Union[Made, Gone]) -> None: ...  # noqa: UP007 - the form under test
def takes_a_string(event: "Made") -> None: ...
def takes_a_string_of_a_union(event: "Made | Gone") -> None: ...
def takes_a_union_of_strings(event: Union["Made", "Gone"]) -> None: ...
def takes_annotated(event: Annotated[Made, "fresh"]) -> None: ...
def takes_annotated_members(event: Annotated[Made | Annotated[Gone, 1], 2]) -> None: ...
def takes_a_list(event: list[int]) -> None: ...
def takes_an_old_list(event: typing.List[int]) -> None: ...  # noqa: UP006 - likewise
def takes_two_lists(event: list[int] | list[str]) -> None: ...
def takes_a_callable(event: Callable[[int], int]) -> None: ...
def takes_everything(event: object) -> None: ...
def takes_many(*events: Made) -> None: ...
def has_unresolvable_others(event: "Made", rate: "Decimal | None" = None) -> "Decimal | None": ...


class Store:
    def take(self, event: "Made") -> None: ...

    @classmethod
    def take_all(cls, event: "Made") -> None: ...

    @staticmethod
    def take_one(event: "Made") -> None: ...

    def __call__(self, event: "Gone") -> None: ...


def takes_rate_first(rate: float, event: "Made") -> None: ...


@functools.wraps(takes_a_string)
def wrapper(*arguments: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "topics"),
    [
        (takes_made, (Made,)),
        (takes_a_union, (Made, Gone)),
        (takes_an_old_union, (Made, Gone)),
        (takes_a_string, (Made,)),
        (takes_a_string_of_a_union, (Made, Gone)),
        (takes_a_union_of_strings, (Made, Gone)),
        (takes_annotated, (Made,)),
        (takes_annotated_members, (Made, Gone)),
        (takes_a_list, (list,)),
        (takes_an_old_list, (list,)),
        (takes_two_lists, (list,)),
        (takes_a_callable, (Callable,)),
        (takes_everything, (object,)),
        (takes_many, (Made,)),
        (has_unresolvable_others, (Made,)),
        (Store().take, (Made,)),
        (Store.take_all, (Made,)),
        (Store.take_one, (Made,)),
        (Store(), (Gone,)),
        (wrapper, (Made,)),
        (functools.partial(takes_rate_first, 0.5), (Made,)),
        (functools.partial(functools.partial(takes_rate_first, 0.5)), (Made,)),
        (functools.partial(Store().take), (Made,)),
        (functools.partial(Store()), (Gone,)),
    ],
)
def test_topics_come_from_the_first_parameter(
    function: Callable[..., Any], topics: tuple[type, ...]
):
    assert topics_of(function) == topics


def test_a_string_is_resolved_in_the_variables_closed_over():
    class Local: ...

    def handle(event: "Local") -> type:
        return Local

    assert topics_of(handle) == (Local,)


def test_a_variable_closed_over_but_not_assigned_yet_is_unresolvable():
    def handle(event: "Later") -> object:
        return Later

    with pytest.raises(SubscriptionError, match="'Later' cannot be resolved"):
        topics_of(handle)

    class Later: ...


def test_a_string_is_resolved_in_the_module_of_the_function():
    source = "from __future__ import annotations\nclass Theirs: ...\ndef handle(event: Theirs): ..."
    namespace: dict[str, Any] = {"__name__": "elsewhere"}
    exec(source, namespace)
    assert topics_of(namespace["handle"]) == (namespace["Theirs"],)

    @functools.wraps(namespace["handle"])
    def wrapped_here(*arguments: Any) -> None: ...

    assert topics_of(wrapped_here) == (namespace["Theirs"],)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement came with Python 3.12")
def test_a_type_alias_stands_for_its_value():
    namespace: dict[str, Any] = {"Made": Made, "Gone": Gone}
    exec("type Either = Made | Gone\ndef handle(event: Either): ...", namespace)
    assert topics_of(namespace["handle"]) == (Made, Gone)


def has_no_annotation(event): ...
def has_no_parameter() -> None: ...
def takes_any(event: Any) -> None: ...
def takes_any_or_made(event: Made | Any) -> None: ...
def takes_a_type_variable(event: E) -> E: ...  # type: ignore[empty-body] # never called
def takes_none(event: None) -> None: ...
def takes_maybe(event: Made | None) -> None: ...
def takes_maybe_the_old_way(event: Optional[Made]) -> None: ...  # noqa: UP045 - the form under test
def takes_a_literal(event: Literal["a"]) -> None: ...
def takes_a_new_type(event: UserId) -> None: ...
def takes_a_checkers_name(event: "Decimal") -> None: ...
def takes_a_topic(event: "order.*") -> None: ...  # type: ignore[valid-type] # noqa: F722
def takes_a_number(event: 7) -> None: ...  # type: ignore[valid-type]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (has_no_annotation, "parameter 'event' has no annotation"),
        (has_no_parameter, "no parameter"),
        (takes_any, "is Any"),
        (takes_any_or_made, "is Any"),
        (takes_a_type_variable, "~E is not a class"),
        (takes_none, "None, which is never published"),
        (takes_maybe, "None, which is never published"),
        (takes_maybe_the_old_way, "None, which is never published"),
        (takes_a_literal, "is not a class"),
        (takes_a_new_type, "UserId is not a class"),
        (takes_a_checkers_name, "'Decimal' cannot be resolved"),
        (takes_a_topic, r"'order\.\*' cannot be resolved"),
        (takes_a_number, "'?7'? (is not a class|cannot be resolved)"),
        (functools.partial(has_no_annotation), "has no annotation"),
    ],
)
def test_annotation_that_names_no_class_is_refused_with_the_remedy(
    function: Callable[..., Any], reason: str
):
    with pytest.raises(SubscriptionError, match=reason) as caught:
        topics_of(function)
    assert name_of(function) in str(caught.value)
    assert "@subscribe(MyEvent, kind=...)" in str(caught.value)
    assert '@subscribe("my.topic", kind=...)' in str(caught.value)


def test_a_builtin_without_a_signature_is_refused():
    with pytest.raises(SubscriptionError, match="no signature"):
        topics_of(type)


def test_a_name_is_module_and_qualified_name():
    assert name_of(takes_made) == f"{__name__}.takes_made"
    assert name_of(Store().take) == f"{__name__}.Store.take"
    assert name_of(functools.partial(takes_rate_first, 0.5)) == f"{__name__}.takes_rate_first"
    assert name_of(Store()) == f"{__name__}.Store"
    assert name_of(print) == "builtins.print"
    assert name_of([].append) == "list.append"
    assert name_of(str.upper) == "str.upper"


def test_module_is_the_one_of_the_written_function():
    assert module_of(functools.partial(takes_made)) == __name__
    assert module_of(Store()) == __name__
    assert module_of([].append) is None


class _Dispatching:
    @functools.singledispatchmethod
    def of_object(self, event: object) -> str:
        return "object"

    @functools.singledispatchmethod
    @classmethod
    def of_class(cls, event: object) -> str:
        return "object"


@pytest.mark.parametrize("function", [_Dispatching().of_object, _Dispatching.of_class])
def test_signature_of_a_singledispatchmethod_takes_one_event(function):
    signature = signature_of(function)

    assert signature is not None
    signature.bind("event")
    assert "self" not in signature.parameters
    assert "cls" not in signature.parameters
