# SPDX-License-Identifier: MIT
"""Classes by value: how a worker makes a class of the script again.

cloudpickle makes an empty class and sets its attributes afterwards. But some attributes must exist
from the beginning: slots, the members of an enum, the fields of a Struct of msgspec or of ctypes.
And some code must not run a second time: `__init_subclass__` and the metaclass ran when the script
defined the class, and their effect on the class travels with the class.
"""

from __future__ import annotations

import enum
import functools
import operator
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

#: Classes that this process sent or made, by the name that cloudpickle gives each. A process makes
#: a class once. If the class arrives again, changes that this process made to its attributes stay.
_classes: WeakValueDictionary[str, type] = WeakValueDictionary()
_trackers: WeakKeyDictionary[type, str] = WeakKeyDictionary()
#: Names of classes whose attributes are still to come.
_unfinished: set[str] = set()

#: Set while a class is made here that was already subclassed in its own process.
_making = threading.local()

#: Attributes that determine the layout of a ctypes structure, and must be set before the fields.
_LAYOUT = ("_pack_", "_align_", "_layout_", "_anonymous_", "_type_", "_length_")
#: Attributes that the module `enum` itself keeps in each member.
_OF_MEMBERS = frozenset(("_value_", "_name_", "__objclass__", "_sort_order_"))


def reduce_class(cls: Any, reduced: tuple[Any, ...], by_value: Callable[[Any], bool]) -> Any:
    """Describe how to make a class that travels by value.

    Args:
        cls: the class.
        reduced: cloudpickle's description.
        by_value: tells whether another class travels by value too.
    """
    of_ctypes = "_ctypes" in (cls.__module__, type(cls).__module__)
    if of_ctypes and (derived := _derived(cls)) is not None:
        return derived
    generic = vars(cls).get("__pydantic_generic_metadata__")
    if generic and generic["origin"] and generic["origin"][generic["args"]] is cls:
        return operator.getitem, (generic["origin"], generic["args"])
    _, args, (attributes, _), _, _, set_state = reduced
    tracker = _trackers.setdefault(cls, args[-2])
    _classes.setdefault(tracker, cls)
    state = {name: value for name, value in attributes.items() if not _is_field(value, cls)}
    if issubclass(cls, enum.Enum):
        # By name, so that aliases are included. cloudpickle would lose the attributes that
        # `__init__` and `__new__` of the enum set on its members.
        members = cls.__members__
        state = {name: value for name, value in state.items() if name not in members}
        inside = {
            name: {key: value for key, value in vars(member).items() if key not in _OF_MEMBERS}
            for name, member in members.items()
        }
        own = {name: member.value for name, member in members.items()}
        if "__new_member__" in vars(cls):  # the enum has a `__new__` of its own
            own = {name: _Member(member.value, _plain(member)) for name, member in members.items()}
        make_args: tuple[Any, ...] = (_importable(type(cls), by_value), cls.__bases__, own)
        rest = (tracker, set_state, state, inside)
        return _make_enum, (tracker, type(cls), _names(cls), *make_args), rest, None, None, _fill
    if is_struct(type(cls)):
        state = {name: value for name, value in state.items() if name not in cls.__struct_fields__}
        state.pop("__slots__", None)
        made = (tracker, type(cls), _names(cls), cls.__bases__, *_struct_parts(cls))
        return _make_struct, made, (tracker, set_state, state, {}), None, None, _fill
    own = dict(args[3])
    if "__orig_bases__" in state:  # read by Generic when the class is made
        own["__orig_bases__"] = cls.__orig_bases__
    if "__slots__" in vars(cls):
        own["__slots__"] = tuple(
            name for name, value in vars(cls).items() if _is_slot(name, value, cls)
        )
    if of_ctypes:
        own.update({name: state.pop(name) for name in _LAYOUT if name in state})
        if "_fields_" in state:  # first of all
            state = {"_fields_": state.pop("_fields_"), **state}
    return (
        _make_class,
        (tracker, type(cls), _names(cls), _importable(type(cls), by_value), cls.__bases__, own),
        (tracker, set_state, state, {}),
        None,
        None,
        _fill,
    )


class _Member:
    """A member of an enum with its own `__new__`, which ran already in the enum's process."""

    def __init__(self, value: Any, plain: Any) -> None:
        self.value = value
        self.plain = plain


def _plain(member: Any) -> Any:
    """The plain value of an enum member that is itself a number, string or the like; else None."""
    for kind, plain in _PLAIN.items():
        if isinstance(member, kind):
            return plain(member)
    return None


_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda member: bytes(memoryview(member)),
    tuple: lambda member: tuple.__getitem__(member, slice(None)),
}


def _derived(cls: Any) -> tuple[Any, ...] | None:
    """Describe a type that ctypes makes itself: a metaclass, or an array or pointer of a type."""
    import ctypes

    bases: Any = (ctypes.Structure, ctypes.Union, ctypes.Array, ctypes._Pointer)  # noqa: SLF001 - it has no other name
    for base in bases:
        if cls is type(base):
            return type, (base,)
    kind, length = getattr(cls, "_type_", None), getattr(cls, "_length_", None)
    if not isinstance(kind, type):
        return None
    if length is not None and cls is kind * length:
        return operator.mul, (kind, length)
    if issubclass(cls, bases[-1]) and cls is ctypes.POINTER(kind):
        return ctypes.POINTER, (kind,)
    return None


def is_struct(metaclass: type) -> bool:
    """Whether a metaclass makes msgspec Structs; checked by name, since few scripts use msgspec."""
    return metaclass.__name__ == "StructMeta" and metaclass.__module__.startswith("msgspec")


def _names(cls: type) -> tuple[str, str, str]:
    return cls.__name__, cls.__qualname__, cls.__module__


def _importable(metaclass: type, by_value: Callable[[Any], bool]) -> type | None:
    """Return the base to use in place of a metaclass, so that its code does not run; else None."""
    if metaclass.__name__ == "_TypedDictMeta":  # it takes only the attributes of a `class`
        return type
    if metaclass.__module__ == "_ctypes" or not by_value(metaclass):
        return None
    found: type = next(each for each in metaclass.__mro__ if not by_value(each))
    return found


def _is_field(value: object, cls: type) -> bool:
    """Whether a value is a descriptor that Python made for a slot or field of that class."""
    if isinstance(value, types.MemberDescriptorType):
        return value.__objclass__ is cls
    kind = type(value)  # of `_ctypes` until Python 3.13, then of `ctypes`
    return kind.__name__ == "CField" and kind.__module__ in ("_ctypes", "ctypes")


def _is_slot(name: str, value: object, cls: type) -> bool:
    if isinstance(value, types.MemberDescriptorType):
        return value.__objclass__ is cls
    return name in ("__dict__", "__weakref__") and isinstance(value, types.GetSetDescriptorType)


# In the process that receives the class. Pickles name these functions.


def _make_class(
    tracker: str,
    metaclass: Any,
    names: tuple[str, str, str],
    maker: Any,
    bases: tuple[Any, ...],
    own: Mapping[str, Any],
) -> type:
    """Make a class with only the attributes that must exist from the beginning."""
    known = _classes.get(tracker)
    if known is not None:
        return known

    def make() -> Any:
        with _Making():
            if maker is not None:
                return maker.__new__(metaclass, names[0], bases, dict(own))
            keywords = {"metaclass": metaclass}
            return types.new_class(names[0], bases, keywords, lambda n: n.update(own))

    try:
        return _keep(tracker, make())
    except TypeError:  # a keyword of the class statement is missing, and lost
        if not _quiet(bases):
            raise
        return _keep(tracker, make())


def _quiet(bases: tuple[Any, ...]) -> bool:
    """Have an imported base's `__init_subclass__` ignore a class that comes by value."""
    for cls in [cls for base in bases for cls in base.__mro__]:
        hook = vars(cls).get("__init_subclass__")
        if isinstance(hook, classmethod):
            cls.__init_subclass__ = _only_here(hook)
            return True
    return False


def _make_enum(
    tracker: str,
    metaclass: Any,
    names: tuple[str, str, str],
    maker: Any,
    bases: tuple[Any, ...],
    members: Mapping[str, Any],
) -> type:
    known = _classes.get(tracker)
    if known is not None:
        return known
    name, qualname, module = names
    maker = maker or metaclass
    namespace = metaclass.__prepare__(name, bases)
    for member, value in members.items():
        namespace[member] = value
        if type(value) is _Member:
            namespace["__new__"] = _new_member
    with _Making():
        cls = maker.__new__(metaclass, name, bases, namespace)
    cls.__module__, cls.__qualname__ = module, qualname
    return _keep(tracker, cls)


def _new_member(cls: Any, given: Any) -> Any:
    """Stand in for the enum's `__new__` while it is made again."""
    if type(given) is tuple:  # enum passes a tuple's items as arguments
        given = given[0]
    for kind in _PLAIN:
        if issubclass(cls, kind):
            made: Any = kind.__new__(cls, given.plain)
            break
    else:
        made = object.__new__(cls)
    made._value_ = given.value
    return made


def _struct_parts(cls: Any) -> tuple[Any, ...]:
    """The parts of a msgspec Struct: its own fields, and the options of its declaration."""
    fields, defaults = cls.__struct_fields__, cls.__struct_defaults__
    own = dict(vars(cls).get("__annotations__", {}))
    with_default = zip(fields[len(fields) - len(defaults) :], defaults, strict=True)
    values = {
        name: (value.factory, None) if type(value).__name__ == "Factory" else (None, value)
        for name, value in with_default
        if name in own and type(value).__name__ != "NoDefaultType"
    }
    config = cls.__struct_config__
    options = {name: getattr(config, name) for name in dir(config) if not name.startswith("_")}
    options["rename"] = {
        name: encoded
        for name, encoded in zip(fields, cls.__struct_encode_fields__, strict=True)
        if name != encoded
    }
    options["kw_only"] = any(name in own and name not in cls.__match_args__ for name in fields)
    return own, values, options, hasattr(cls, "__post_init__")


def _make_struct(
    tracker: str,
    metaclass: Any,
    names: tuple[str, str, str],
    bases: tuple[Any, ...],
    annotations: dict[str, Any],
    values: Mapping[str, tuple[Any, Any]],
    options: dict[str, Any],
    looks_after: bool,
) -> type:
    known = _classes.get(tracker)
    if known is not None:
        return known
    import msgspec

    name, qualname, module = names
    own: dict[str, Any] = {
        "__annotations__": annotations,
        "__module__": module,
        "__qualname__": qualname,
    }
    for field, (factory, value) in values.items():
        own[field] = value if factory is None else msgspec.field(default_factory=factory)
    if looks_after:  # msgspec looks for the method once, when the class is made
        own["__post_init__"] = _post_init
    with _Making():
        cls = metaclass(name, bases, own, **options)
    return _keep(tracker, cls)


def _post_init(self: Any) -> None:
    """Stand in for a Struct's `__post_init__`, which arrives with the attributes."""
    for cls in type(self).__mro__:
        found = vars(cls).get("__post_init__", _post_init)
        if found is not _post_init:
            found(self)
            return


def _keep(tracker: str, cls: type) -> type:
    _classes[tracker], _trackers[cls] = cls, tracker
    _unfinished.add(tracker)
    return cls


def _fill(cls: Any, filling: tuple[Any, ...]) -> None:
    """Set the attributes of a class, unless it has them already."""
    tracker, set_state, state, members = filling
    if tracker not in _unfinished:
        return
    hook = state.get("__init_subclass__")
    if isinstance(hook, classmethod):
        state["__init_subclass__"] = _only_here(hook)
    set_state(cls, (state, {}))
    for name, inside in members.items():
        vars(cls.__members__[name]).update(inside)
    _unfinished.discard(tracker)


class _Making:
    """Marks that a class is being made here that was defined elsewhere."""

    def __enter__(self) -> None:
        _making.now = True

    def __exit__(self, *_: object) -> None:
        _making.now = False


def _only_here(hook: Any) -> Any:
    """Make an `__init_subclass__` that ignores classes already subclassed elsewhere."""

    @functools.wraps(hook.__func__)
    def only_here(cls: Any, **keywords: Any) -> Any:
        if not getattr(_making, "now", False):
            hook.__get__(None, cls)(**keywords)

    return classmethod(only_here)  # type: ignore[arg-type] # functools.wraps confuses it
