# SPDX-License-Identifier: MIT
"""An option is declared once: a field of a dataclass, with its default and its check.

Two declarations belong together. A `TypedDict` has the options as a user may write them, for type
checkers and editors. A dataclass has a field for each option, in its checked form. Signatures,
checks, and the lists of names in error messages are made from these two.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, NamedTuple, TypeVar

from procbus.core.introspection import is_async
from procbus.core.validation import is_real, is_whole, parse_limit, shown

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

Check = Callable[[str, Any], Any]
"""Returns the checked form of a value, by the option's name; raises ValueError, with advice."""


class Option(NamedTuple):
    """The declaration of one option.

    Attributes:
        default: the default, as a user would write it.
        check: makes the checked form of a value.
        only_cpu: advice for a user who gives the option to an io handler, if only cpu handlers may
            have it; else "".
        no_threads: the reason why threads cannot keep the option for cpu handlers, if only
            processes can; else "".
    """

    default: Any
    check: Check
    only_cpu: str = ""
    no_threads: str = ""


def option(default: Any, check: Check, *, only_cpu: str = "", no_threads: str = "") -> Any:
    """Declare an option as a field of a dataclass; the arguments are the fields of `Option`."""
    declared = Option(default, check, only_cpu, no_threads)
    return dataclasses.field(default=default, metadata={"option": declared})


def options_of(*classes: type[Any]) -> dict[str, Option]:
    """The options that dataclasses declare, by name."""
    return {
        each.name: each.metadata["option"]
        for cls in classes
        for each in dataclasses.fields(cls)
        if "option" in each.metadata
    }


def checked(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Check each option of a dataclass.

    Args:
        cls: declares the options.
        given: the options that the user wrote, by name. Names of other options are ignored.

    Raises:
        ValueError: an option makes no sense; the message says how to mend it.
    """
    return {
        name: each.check(name, given.get(name, each.default))
        for name, each in options_of(cls).items()
    }


def shows_options(typed: Any, *classes: type[Any]) -> Callable[[F], F]:
    """Make a decorator for a function that takes options as ``**options: Unpack[...]``.

    `help` and `inspect.signature` then list each option with its type and its default.

    Args:
        typed: the TypedDict of its options.
        *classes: the dataclasses that declare the same options.
    """
    written = typed.__annotations__
    named = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=getattr(written[name], "__forward_arg__", written[name]),
        )
        for name, each in options_of(*classes).items()
        if name in written
    ]

    def decorate(function: F) -> F:
        bare = inspect.signature(function)
        own = [each for each in bare.parameters.values() if each.kind is not each.VAR_KEYWORD]
        described: Any = function
        described.__signature__ = bare.replace(parameters=[*own, *named])
        return function

    return decorate


# Checks that several options share.


def as_given(name: str, value: T) -> T:  # noqa: ARG001 - as all checks
    """Take any value: it is checked elsewhere."""
    return value


def whole(least: int, most: float = inf, *, or_none: bool = False) -> Check:
    """Make a check for a whole number."""

    def check(name: str, value: Any) -> Any:
        if not (or_none and value is None) and not is_whole(value, least, most):
            bound = "up" if most == inf else f"to {most}"
            raise ValueError(
                f"{name} must be a whole number from {least} {bound}, not {shown(value)}"
            )
        return value

    return check


def seconds_up_to(longest: float) -> Check:
    """Make a check for a number of seconds."""

    def check(name: str, value: Any) -> float:
        if not is_real(value, 0, longest):
            raise ValueError(
                f"{name} must be a number of seconds from 0 to {longest}, not {shown(value)}"
            )
        return float(value)

    return check


def memory_limit(name: str, value: Any) -> int | None:
    """Check a limit on the memory of a worker, and give its bytes; None for no limit."""
    try:
        return None if value is None else parse_limit(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def one_of(*choices: str | bool | None) -> Check:
    """Make a check for a word, or for True and False."""
    said = [f'"{each}"' if isinstance(each, str) else str(each) for each in choices]
    words = f"{', '.join(said[:-1])} or {said[-1]}"

    def check(name: str, value: Any) -> Any:
        # Only words are compared, since the comparison of another object is the user's code.
        equal = isinstance(value, str) and value in choices
        if not equal and not any(value is each for each in choices):
            raise ValueError(f"{name} must be {words}, not {shown(value)}")
        return value

    return check


def event_function(name: str, value: Any) -> Any:
    """Check a function that takes an event and returns at once; None for none."""
    if value is not None and not callable(value):
        raise ValueError(
            f"{name} must be a function of the event, such as lambda e: e.id, not {shown(value)}"
        )
    if value is not None and is_async(value):
        raise ValueError(f"{name} is async, but its answer is needed at once; make it a plain def")
    return value
