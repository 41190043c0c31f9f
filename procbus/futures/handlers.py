# SPDX-License-Identifier: MIT
"""The handlers of an executor: one for each callable, so that the callable is shipped once.

A callable is recognised by its identity. Only the function beneath it is shipped once. The state of
the callable (the instance of a bound method, a callable object, the arguments of a partial) travels
with each call, as the state is then.
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

from procbus.core.handler import Kind
from procbus.core.introspection import is_async, name_of
from procbus.core.subscription import Subscription
from procbus.futures.calls import Arguments, AsyncCall, AsyncCarriedCall, CallForm, CarriedCall

#: Maximum of callables kept, here and in the workers, not counting callables with pending calls.
MOST_CALLABLES = 128

#: Number of functions made by one `def` or `lambda`. From then on, a new function travels with its
#: first call, and is shipped only if the next call of that code has the same function.
MOST_SIBLINGS = 8

#: Marks a gap in a partial, in Python 3.14 and later.
_GAP = getattr(functools, "Placeholder", None)


class CallHandler:
    """The handler of one callable, or of callables that travel with their calls."""

    __slots__ = ("anchor", "carries", "gone", "noticed", "pins", "subscription")

    def __init__(self, anchor: object, subscription: Subscription, *, carries: bool) -> None:
        #: The object that identifies the callable; kept alive, so that no other object gets the
        #: same identity.
        self.anchor = anchor
        self.subscription = subscription
        #: Whether the function is a part of the event.
        self.carries = carries
        #: Number of published calls of the handler, when it was last considered for dropping.
        self.noticed = -1
        #: One entry for each call that is being published. A publisher adds its entry, then reads
        #: `gone`. A thread that drops the handler sets `gone`, then reads this. So one of them sees
        #: the other.
        self.pins: list[None] = []
        self.gone = False


class _Siblings:
    """Functions made by one `def` or `lambda`, which share their code."""

    __slots__ = ("code", "last", "made")

    def __init__(self, code: types.CodeType) -> None:
        self.code = code
        self.made = 0
        self.last: weakref.ref[Callable[..., Any]] | None = None


class CallHandlers:
    """The handlers of one executor and one form of call. Thread-safe.

    The lock `_lock` guards the writing of its fields. Finding a known callable takes no lock.

    Args:
        kind: the executor's kind.
        form: the way the callables are called.
        subscribe: makes the subscription of a function and a name.
        retire: drops an idle subscription.
    """

    def __init__(
        self,
        kind: Kind,
        form: CallForm,
        subscribe: Callable[[Callable[..., Any], str], Subscription],
        retire: Callable[[Subscription], None],
    ) -> None:
        self._kind = kind
        self._form = form
        self._subscribe = subscribe
        self._retire = retire
        self._lock = threading.RLock()
        #: By the identity of the shipped function; for a carried one by its code's identity, or by
        #: name.
        self._known: dict[int | str, CallHandler] = {}
        self._siblings: dict[int, _Siblings] = {}

    def find(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[CallHandler, Callable[..., Any], Arguments]:
        """Find the handler of a call.

        Returns:
            The handler, pinned: call `pins.pop()` once the call is published. Then the function
            beneath that is called, and its arguments.

        Raises:
            TypeError: it is not callable; or it is async, and the executor is for processes.
        """
        found = self._known.get(id(function))
        if found is None:
            function, args, kwargs = taken_apart(function, args, kwargs)
            found = self._known.get(id(function))
        if found is not None:
            found.pins.append(None)
            if not found.gone:
                return found, function, (args, kwargs)
            found.pins.pop()
        with self._lock:
            found = self._known.get(id(function)) or self._make(function)
            found.pins.append(None)
            self._let_go()
        return found, function, (args, kwargs)

    def clear(self) -> None:
        """Drop all idle handlers, because no call follows."""
        with self._lock:
            self._siblings.clear()
            for key, handler in list(self._known.items()):
                self._drop(key, handler)

    # Called under the lock.

    def _make(self, function: Callable[..., Any]) -> CallHandler:
        awaits = is_async(function)
        if awaits and self._kind == "cpu":
            raise TypeError(
                f"{name_of(function)} is async, and worker processes run no event loop: "
                'use executor("io"), or make it a plain def'
            )
        key, anchor = self._key_of(function)
        carries = anchor is not function
        if carries and key in self._known:
            return self._known[key]
        form: CallForm = AsyncCall if awaits else self._form
        runs: Callable[..., Any] = form(function)
        if carries:
            runs = AsyncCarriedCall(form) if awaits else CarriedCall(form)
        handler = CallHandler(anchor, self._subscribe(runs, name_of(function)), carries=carries)
        self._known[key] = handler
        return handler

    def _key_of(self, function: Callable[..., Any]) -> tuple[int | str, object]:
        """Return the key that a new function is known by, and the object to keep alive for it."""
        if not _is_function(function):
            return name_of(function), None
        if not (isinstance(function, types.FunctionType) and "<" in function.__qualname__):
            return id(function), function
        code = function.__code__
        siblings = self._siblings.get(id(code))
        if siblings is None:
            if len(self._siblings) >= MOST_CALLABLES:
                del self._siblings[next(iter(self._siblings))]
            siblings = self._siblings[id(code)] = _Siblings(code)
        siblings.made += 1
        again = siblings.last is not None and siblings.last() is function
        if siblings.made <= MOST_SIBLINGS or again:
            return id(function), function
        siblings.last = weakref.ref(function)
        return id(code), code

    def _let_go(self) -> None:
        """Drop handlers that were not called lately, the oldest first, until few enough are left.

        A handler that was called since it was last considered is skipped once, and then counts as
        the newest (the clock of page replacement; Corbato, 1968).
        """
        for _ in range(2 * len(self._known)):
            if len(self._known) <= MOST_CALLABLES:
                return
            key = next(iter(self._known))
            handler = self._known[key]
            published = handler.subscription.published
            if published != handler.noticed or not self._drop(key, handler):
                handler.noticed = published
                self._known[key] = self._known.pop(key)

    def _drop(self, key: int | str, handler: CallHandler) -> bool:
        """Drop a handler, if no call of it is pending or being published."""
        handler.gone = True
        if handler.pins or not handler.subscription.idle:
            handler.gone = False
            return False
        del self._known[key]
        self._retire(handler.subscription)
        return True


def taken_apart(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Turn a call into a call of the function beneath: bound objects join the arguments.

    Raises:
        TypeError: the object is not callable.
    """
    while not isinstance(function, types.FunctionType | type):
        made = _call_of(type(function))
        if isinstance(function, types.MethodType):
            args = (function.__self__, *args)
            function = function.__func__
        elif type(function) is functools.partial and not _has_gaps(function):
            args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
            function = function.func
        elif isinstance(made, types.FunctionType):
            args = (function, *args)
            function = made
        elif callable(function):
            break
        else:
            raise TypeError(f"an executor calls functions, but {function!r} is not callable")
    return function, args, kwargs


def _call_of(cls: Any) -> object:
    """The function that calling an instance of a class runs; None if it cannot be called."""
    return next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)


def _has_gaps(function: functools.partial[Any]) -> bool:
    return _GAP is not None and any(value is _GAP for value in function.args)


def _is_function(function: Callable[..., Any]) -> bool:
    """Whether a callable is a function or class, and no object with its own state."""
    owner = getattr(function, "__self__", None)
    return hasattr(function, "__qualname__") and (
        owner is None or isinstance(owner, types.ModuleType)
    )
