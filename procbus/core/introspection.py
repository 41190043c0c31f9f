# SPDX-License-Identifier: MIT
"""Facts about a handler's function: its name, its module, the topics in its annotation.

The user's function may be a partial, a bound method, a callable object or a decorated function.
Each function below finds the part of it that has the answer.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    MutableSequence,
    Sequence,
)
from typing import Any, TypeGuard

from procbus.core.errors import SubscriptionError


def topics_of(function: Callable[..., Any], *, in_list: bool = False) -> tuple[type, ...]:
    """Take the topics from the annotation of the first parameter.

    A union gives each of its members, ``Annotated[E, ...]`` gives ``E``, ``list[int]`` gives
    ``list``. String annotations are resolved where the function was written: in its module and in
    the variables that it closes over.

    Args:
        function: a plain function, bound method, `functools.partial` or callable object.
        in_list: whether it takes a list of events: then ``list[E]`` gives ``E``.

    Raises:
        SubscriptionError: the annotation is missing, cannot be resolved, or names no class.
    """
    try:
        members = members_of(_resolve(function, _first_annotation(function)))
        if in_list:
            members = (each for hint in members for each in members_of(_element_of(hint)))
        return tuple(dict.fromkeys(map(_class_of, members)))
    except _NoTopic as error:
        option, wanted = "kind", "the class of its events"
        if in_list:
            option, wanted = "batch", "a list of the class of its events, such as list[MyEvent]"
        raise SubscriptionError(
            f"handler {name_of(function)}: no topic, because {error}; annotate its first parameter "
            f"with {wanted}, or name the topic: "
            f'@subscribe(MyEvent, {option}=...) or @subscribe("my.topic", {option}=...)'
        ) from error.__cause__


class _NoTopic(Exception):
    """An annotation gives no topic. The text is the reason."""


def _element_of(hint: Any) -> object:
    """The class of the events in a list, by the annotation of the list."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in _LISTS and args:
        return args[0]
    shown = getattr(hint, "__qualname__", None) if isinstance(hint, type) else None
    raise _NoTopic(
        "batch= gives it a list of events, and its annotation "
        + ("includes None" if hint is types.NoneType else f"is {shown or repr(hint)}")
    )


def hint_of_first(function: Callable[..., Any]) -> Any:
    """Return the annotation of the first parameter; `Any` if it cannot be known.

    The signature of a wrapper, which has `__wrapped__`, is the signature of the wrapped function.
    The wrapper itself may take other parameters.
    """
    if _is_wrapper(function):
        return Any
    try:
        return _resolve(function, _first_annotation(function))
    except _NoTopic:
        return Any


def element_in(hint: Any) -> Any:
    """The class of the events in an annotation of a list; `Any` if the annotation does not say."""
    args = typing.get_args(hint)
    return args[0] if typing.get_origin(hint) in _LISTS and args else Any


def _is_wrapper(function: Callable[..., Any]) -> bool:
    inner: Any = without_partial(function)
    calls = (inner, getattr(inner, "__func__", None), type(inner).__call__)
    return any(
        inspect.getattr_static(each, name, None) is not None
        for each in calls
        for name in _TELL_SIGNATURE
    )


def class_in(hint: Any) -> type | None:
    """The class of an annotation that is no union, without its parameters; None if it has none."""
    found = typing.get_origin(hint) or hint
    return found if isinstance(found, type) and found is not Any else None


#: Annotations that a list of events fits.
_LISTS = (list, Sequence, MutableSequence, Collection, Iterable)


def name_of(function: Callable[..., Any]) -> str:
    """Name a function for people: ``module.qualname``.

    A partial is named for the function in it, a callable object for its class.
    """
    module, name = module_of(function), name_bearer(function).__qualname__
    return f"{module}.{name}" if module else name


def module_of(function: Callable[..., Any]) -> str | None:
    """Name the module in which a function, a partial's function, or a class was written."""
    module = getattr(name_bearer(function), "__module__", None)  # methods of builtins have none
    return module if isinstance(module, str) else None


def _is_bound_dispatcher(function: Any) -> bool:
    """Whether it is a `singledispatchmethod` of an object, or is bound to a class.

    Its signature would be the signature of the method, with the parameter that is already bound.
    """
    if inspect.getattr_static(function, "__wrapped__", None) is None:
        return False
    register = getattr(function, "register", None)
    return isinstance(getattr(register, "__self__", None), functools.singledispatchmethod)


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of a callable; None if it has none, like some builtins."""
    call = type(function).__call__
    tellers = (inspect.getattr_static(function, name, None) for name in _TELL_SIGNATURE)
    if isinstance(call, types.FunctionType) and not any(each is not None for each in tellers):
        function = types.MethodType(call, function)  # `==` would ask the object itself
    try:
        return inspect.signature(function, follow_wrapped=not _is_bound_dispatcher(function))
    except (Exception, SystemExit, GeneratorExit):  # noqa: BLE001 - it asks the user's objects
        return None


#: A callable object with one of these attributes has another signature than its `__call__`.
_TELL_SIGNATURE = ("__signature__", "__wrapped__")


def without_partial(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the callable inside any layers of `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_bearer(function: Callable[..., Any]) -> Any:
    """Return the object that carries a callable's name: a partial's function, an object's class."""
    inner = without_partial(function)
    return inner if _has_name(inner) else type(inner)


def _has_name(inner: Callable[..., Any]) -> bool:
    try:
        return isinstance(inner.__qualname__, str)
    except Exception:  # noqa: BLE001 - a callable object may answer as it likes
        return False


def _first_annotation(function: Callable[..., Any]) -> object:
    signature = signature_of(function)
    if signature is None:
        raise _NoTopic("it has no signature to read a topic from")
    for parameter in signature.parameters.values():
        if parameter.annotation is parameter.empty:
            raise _NoTopic(f"its parameter {parameter.name!r} has no annotation")
        return parameter.annotation
    raise _NoTopic("it has no parameter to read a topic from")


def _resolve(function: Callable[..., Any], annotation: object) -> object:
    """Evaluate one annotation and the strings in it, and no other annotation of the function.

    The other annotations may be names that exist only for the type checker.
    """
    source = written(function)
    holder = types.SimpleNamespace(__annotations__={"event": annotation})
    try:
        hints = typing.get_type_hints(
            holder, getattr(source, "__globals__", {}), _closure_of(source)
        )
    except Exception as error:  # an annotation is the user's code: it may raise anything
        text = annotation if isinstance(annotation, str) else repr(annotation)
        reason = f"its annotation {text!r} cannot be resolved ({type(error).__name__}: {error})"
        raise _NoTopic(reason) from error
    return hints["event"]


def written(function: Callable[..., Any]) -> object:
    """Find the function whose source holds the annotation: beneath partials, methods, wrappers."""
    inner: Any = without_partial(function)
    if not _has_name(inner):
        inner = type(inner).__call__
    return without_partial(inspect.unwrap(getattr(inner, "__func__", inner)))


def _closure_of(function: object) -> dict[str, object]:
    variables = {}
    names = function.__code__.co_freevars if isinstance(function, types.FunctionType) else ()
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        try:
            variables[name] = cell.cell_contents
        except ValueError:  # not assigned yet: the annotation is then reported as unresolvable
            continue
    return variables


def members_of(hint: Any) -> Iterator[object]:
    """Yield the members of a union, or of the alias of a union; any other annotation is yielded."""
    if sys.version_info >= (3, 12) and isinstance(hint, typing.TypeAliasType):
        yield from members_of(hint.__value__)
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from members_of(member)
    else:
        yield hint


def _class_of(member: object) -> type:
    if member is None or member is types.NoneType:
        raise _NoTopic("its annotation includes None, which is never published")
    if member is Any:
        raise _NoTopic("its annotation is Any, which is no class (object takes them all)")
    found = typing.get_origin(member) or member
    if not isinstance(found, type):
        raise _NoTopic(f"its annotation {member!r} is not a class")
    return found


def is_function(topic: object) -> TypeGuard[Callable[..., Any]]:
    """Whether the first argument of `subscribe` is a handler: a callable that names no class.

    Annotations such as ``list[int]`` are callable too.
    """
    kind = type(topic)
    return (
        callable(topic)
        and not issubclass(kind, type | str | tuple | list)
        and kind.__module__ not in ("types", "typing", "typing_extensions")
    )


# Properties of a callable that can be found without calling it.


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return _is(function, inspect.iscoroutinefunction)


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it only makes a generator, asynchronous or not, and runs nothing."""
    return _is(function, inspect.isgeneratorfunction) or _is(function, inspect.isasyncgenfunction)


def is_async_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it makes an async generator."""
    return _is(function, inspect.isasyncgenfunction)


def accepts(function: Callable[..., Any], arguments: int) -> bool:
    """Whether the function can be called with this many positional arguments; True if unknown."""
    signature = signature_of(function)
    if signature is None:
        return True
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def identity_of(function: Callable[..., Any]) -> Hashable:
    """Return a value that is equal for two callables exactly if they are one handler.

    `store.take` makes a new method object each time, and all of them are one handler. Two partials
    are one handler if they bind the very same objects. The value is valid while the callable lives.
    Computing it runs no method of the user's classes, not even ``__eq__``.
    """
    kind = type(function)
    found: Any = function
    if kind is types.MethodType:
        return "method", id(found.__self__), id(found.__func__)
    if kind is types.BuiltinMethodType or kind is types.MethodWrapperType:
        return "method", id(found.__self__), found.__qualname__
    if kind is functools.partial:
        bound = [(name, id(value)) for name, value in found.keywords.items()]
        return "partial", identity_of(found.func), tuple(map(id, found.args)), tuple(bound)
    return id(function)


def same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two callables are one handler, see `identity_of`."""
    return one is other or identity_of(one) == identity_of(other)


def looks_unimportable(function: Callable[..., Any]) -> bool:
    """Whether a worker cannot import the function, so that its code and variables must be sent.

    Such a function has ``<locals>`` or ``<lambda>`` in its qualified name.
    """
    return module_of(function) in ("__main__", "__mp_main__") or "<" in name_of(function)


def _is(function: Callable[..., Any], asked: Callable[[Any], bool]) -> bool:
    """Apply a test to the function, or to a callable object's ``__call__``, beneath partials."""
    inner = without_partial(function)
    try:
        if asked(inner):
            return True
    except Exception:  # noqa: BLE001 - it looks at attributes, which an object may refuse
        return asked(type(inner).__call__)
    return not inspect.isroutine(inner) and asked(type(inner).__call__)
