# SPDX-License-Identifier: MIT
"""Objects that pickle by name, although the name means nothing in a worker.

Some objects pickle as the name of a global variable: functions with a cache, types made with
NewType, sentinels whose `__reduce__` returns a name. A worker does not have the script's variables,
so one table here says for each type how to make the object again. Other objects are known by their
identity, such as `MISSING = object()` or a ContextVar. Each of these gets a key and is made once in
each process.
"""

from __future__ import annotations

import contextvars
import copyreg
import functools
import importlib
import itertools
import os
import sys
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

from procbus.codec.script_globals import content_of

#: Key of an object known by its identity: the process that sent the object first, and the number
#: that the object has there.
SharedKey = tuple[str, int]

_by_key: dict[SharedKey, Any] = {}
_keys: dict[int, SharedKey] = {}
#: Places where other processes can import an object: module and name, by the object's id.
_places: dict[int, tuple[str, str]] = {}
_numbers = itertools.count(1)
_process: list[tuple[int, str]] = []

#: Whether any object with a key is a bare `object()`. The C pickler would make another one of it.
bare = False


def single(obj: Any) -> Any:
    """Name an object that has a key; None for any other."""
    key = _keys.get(id(obj))
    return None if key is None else (by_its_key, (*key, *_form(obj)))


def key_of(obj: Any) -> tuple[SharedKey, Any] | None:
    """Return the key of an object that is made from its class here, and its parts."""
    key = _keys.get(id(obj))
    return None if key is None or id(obj) in _places else (key, _form(obj)[1])


def new_single(obj: Any, importable: Callable[[str], bool], *, always: bool = False) -> Any:
    """Name an object by a key, which it gets now if it has none; None if it needs no key.

    Args:
        obj: the object.
        importable: whether a worker can import a module.
        always: whether it needs a key even if it is no global variable.
    """
    if id(obj) not in _keys:
        place = _place_of(obj)
        if place is None and not always:
            return None
        if place is not None and importable(place[0]):
            _places[id(obj)] = place
        _keep((_origin(), next(_numbers)), obj)
    return single(obj)


def _place_of(obj: Any) -> tuple[str, str] | None:
    """Find the global variable that holds an object: in the script, its class's module, or any."""
    kind = type(obj)
    likely = ["__main__", kind.__module__]
    if kind is object or kind is contextvars.ContextVar:  # these do not name their module
        likely = [*(name for name in list(sys.modules) if name != "__main__"), "__main__"]
    for module in likely:
        variables = getattr(sys.modules.get(module), "__dict__", {})
        for name, value in list(variables.items()):
            if value is obj:
                return module, name
    return None


def counts_here(kind: type) -> bool:
    """Whether a class is a progress bar of tqdm: one can be pickled, but its copy shows nothing."""
    return any(each.__module__ == "tqdm.std" and each.__name__ == "tqdm" for each in kind.__mro__)


def by_import(obj: Any, importable: Callable[[str], bool]) -> Any:
    """Name an object that a package holds under its own name, such as loguru's `logger`."""
    if issubclass(type(obj), type | types.ModuleType | types.FunctionType):
        return None
    module: Any = type(obj).__module__
    for place in (module, str(module).partition(".")[0]):
        for name, value in list(getattr(sys.modules.get(place), "__dict__", {}).items()):
            if value is obj and importable(place):
                return _make, (None, (place, name))
    return None


def _keep(key: SharedKey, obj: Any) -> Any:
    global bare
    kept = _by_key.setdefault(key, obj)
    _keys[id(kept)] = key
    bare = bare or type(kept) is object
    return kept


def _origin() -> str:
    """A name for this process that no other process has; a forked child gets a new name."""
    if not _process or _process[-1][0] != os.getpid():
        _process.append((os.getpid(), os.urandom(8).hex()))
    return _process[-1][1]


def _form(obj: Any) -> tuple[Any, Any]:
    """Say how to get an object with a key: by import, or from its class and parts."""
    if place := _places.get(id(obj)):
        return None, (*place, *_form_by_value(obj))
    return _form_by_value(obj)


def _form_by_value(obj: Any) -> tuple[Any, Any]:
    if type(obj) is contextvars.ContextVar:
        try:
            return type(obj), (obj.name, contextvars.Context().run(obj.get))
        except LookupError:  # the variable has no default
            return type(obj), (obj.name,)
    return type(obj), object.__getstate__(obj)


def by_its_key(process: str, number: int, cls: Any, parts: Any) -> Any:
    """Return the object that has this key in this process; make the object if there is none yet."""
    key = process, number
    found = _by_key.get(key, _NO_DEFAULT)
    return _keep(key, _make(cls, parts)) if found is _NO_DEFAULT else found


def _make(cls: Any, parts: Any) -> Any:
    if cls is None:
        module, name, *form = parts
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            if not form:
                raise
            return _make(*form)  # the script put it into that module
    if cls is contextvars.ContextVar:
        name, *default = parts
        return cls(name, **({"default": default[0]} if default else {}))
    made = object.__new__(cls)
    inside, slots = parts if isinstance(parts, tuple) else (parts, None)
    for name, value in {**(inside or {}), **(slots or {})}.items():
        object.__setattr__(made, name, value)
    return made


# Instances that several handlers share, such as the object whose methods they are.

#: Instances that were sent, by id: a weak reference, the key, and the content if it is plain.
_shared: dict[int, tuple[weakref.ref[Any], SharedKey, bytes | None]] = {}
#: Instances that arrived, kept while a handler holds them; and the keys of instances whose
#: attributes are still to come.
_arrived: weakref.WeakValueDictionary[SharedKey, Any] = weakref.WeakValueDictionary()
_unfilled: set[SharedKey] = set()


def share_by_key(obj: Any, reduced: Any) -> Any:
    """Have a plain instance arrive as one object in a worker, however many handlers share it.

    An instance whose attributes have changed arrives as another object.
    """
    kind: Any = type(obj)
    if (
        kind.__reduce_ex__ is not object.__reduce_ex__
        or kind.__reduce__ is not object.__reduce__
        or hasattr(kind, "__setstate__")
        or not isinstance(reduced, tuple)
        or reduced[0] is not copyreg.__newobj__  # type: ignore[attr-defined] # typeshed lacks it
        or any(reduced[3:])
    ):
        return reduced
    number = id(obj)
    content = content_of(obj)
    found = _shared.get(number)
    if found is None or found[0]() is not obj or found[2] != content:
        try:
            reference = weakref.ref(obj, functools.partial(_let_go, number))
        except TypeError:  # its slots leave no room for a weak reference
            return reduced
        found = _shared[number] = reference, (_origin(), next(_numbers)), content
    key = found[1]
    return _make_shared, (key, *reduced[1]), (key, reduced[2]), None, None, _fill_shared


def _let_go(number: int, reference: weakref.ref[Any]) -> None:
    found = _shared.get(number)
    if found is not None and found[0] is reference:
        del _shared[number]


def _make_shared(key: SharedKey, cls: Any, *args: Any) -> Any:
    found = _arrived.get(key)
    if found is None:
        found = _arrived[key] = cls.__new__(cls, *args)
        _unfilled.add(key)
    return found


def _fill_shared(obj: Any, filling: tuple[SharedKey, Any]) -> None:
    key, state = filling
    if key not in _unfilled:
        return
    inside, slots = state if isinstance(state, tuple) else (state, None)
    if inside:
        obj.__dict__.update(inside)
    for name, value in (slots or {}).items():
        setattr(obj, name, value)
    _unfilled.discard(key)


class _NoDefault:
    def __reduce__(self) -> str:
        return "_NO_DEFAULT"


_NO_DEFAULT = _NoDefault()


def is_stateless(reduced: Any) -> bool:
    """Whether an object has no content apart from its class; a sentinel may be such an object."""
    return (
        isinstance(reduced, tuple)
        and reduced[0] is copyreg.__newobj__  # type: ignore[attr-defined] # typeshed lacks it
        and len(reduced[1]) == 1
        and not any(reduced[2:])
    )


# Ways to make an object again that pickle would only name. Pickles name the `_make...` functions.


def _reduce_cache(cache: Any) -> Any:
    inside = {k: v for k, v in vars(cache).items() if k != "__wrapped__"}
    options = cache.cache_parameters()
    return _make_cache, (cache.__wrapped__, options["maxsize"], options["typed"]), inside or None


def _make_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _reduce_cached_property(found: Any) -> Any:
    # Up to Python 3.11 a cached property holds a lock, which does not pickle. Python sets the name
    # of the attribute only when the class is defined.
    inside = {"attrname": found.attrname, "__doc__": found.__doc__}
    return functools.cached_property, (found.func,), inside


def _reduce_partial_method(found: Any) -> Any:
    # From Python 3.14 on, a `partialmethod` cannot be made without a function, as pickle tries.
    make = functools.partial(functools.partialmethod, found.func, *found.args, **found.keywords)
    return make, ()


def _reduce_new_type(found: Any) -> Any:
    return _make_new_type, (found.__qualname__, found.__supertype__, found.__module__)


def _make_new_type(name: str, supertype: Any, module: str) -> Any:
    made = typing.NewType(name, supertype)  # type: ignore[misc] # checkers want a literal name
    made.__module__ = module
    return made


def _reduce_param_spec(found: Any) -> Any:
    return typing.ParamSpec, (found.__name__,)


def _reduce_type_var_tuple(found: Any) -> Any:
    return typing.TypeVarTuple, (found.__name__,)


def _reduce_alias(found: Any) -> Any:
    if found.__type_params__:
        return _make_alias, (found.__name__, found.__value__, found.__type_params__)
    # The alias may refer to itself. A list is memoized before its contents, so that pickling ends.
    _, value = _aliases.setdefault(id(found), (found, []))
    value[:] = [found.__value__]
    return _make_lazy_alias, (found.__name__, found.__module__, value)


_aliases: dict[int, tuple[Any, list[Any]]] = {}


def _make_alias(name: str, value: Any, parameters: Any) -> Any:
    make: Any = typing.TypeAliasType  # type: ignore[attr-defined,unused-ignore] # from 3.12 on
    return make(name, value, type_params=parameters)


def _make_lazy_alias(name: str, module: str, value: list[Any]) -> Any:
    variables = {"__name__": module, "_value": value}
    # Only the statement makes an alias whose value is evaluated later.
    exec(f"type {name} = _value[0]", variables)  # noqa: S102 - the name is that of such an alias
    return variables[name]


#: Types that pickle as a name, and how to make their objects where the name means nothing.
NAMED: dict[type, Callable[[Any], Any]] = {
    type(functools.lru_cache(len)): _reduce_cache,
    typing.NewType: _reduce_new_type,
    typing.ParamSpec: _reduce_param_spec,
    typing.TypeVarTuple: _reduce_type_var_tuple,
}
if sys.version_info >= (3, 12):
    NAMED[typing.TypeAliasType] = _reduce_alias

#: Types whose objects do not pickle at all.
UNNAMED: dict[type, Callable[[Any], Any]] = {
    functools.cached_property: _reduce_cached_property,
    functools.partialmethod: _reduce_partial_method,
    # A `singledispatch` function has one, for example.
    weakref.WeakKeyDictionary: lambda found: (weakref.WeakKeyDictionary, (dict(found),)),
    types.MemberDescriptorType: lambda found: (getattr, (found.__objclass__, found.__name__)),
}
