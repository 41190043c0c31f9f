# SPDX-License-Identifier: MIT
"""Turns objects into bytes and back, between a parent and its workers.

Plain pickle is used where it suffices, and cloudpickle for definitions of the script. A class must
travel by value if it is defined in `__main__`, in a function or in a notebook. Sending such a class
with each event would cost about 200 us. So each worker gets the class once, and from then on a
number names it.
"""

from __future__ import annotations

import copyreg
import gc
import io
import itertools
import pickle
import sys
import types
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from math import inf
from typing import Any

import cloudpickle

from procbus.codec import by_value, exception_parts, script_globals
from procbus.codec.class_forms import reduce_class
from procbus.codec.loose_modules import is_loose
from procbus.core.user_objects import named

#: (definer, number of the class): the definer 0 is the parent, any other number a worker.
ClassNumber = tuple[int, int]

PARENT = 0
PROTOCOL = pickle.HIGHEST_PROTOCOL
_LARGE = 1 << 16
#: The bytes with which the C pickler names the class `object`.
_BARE = b"\x8c\x06object"
#: The opcode for a class or function that is pickled by its name, which plain data lacks; and the
#: name of the module that no worker knows. `rfind` finds the name three times as fast as `in`.
_NAMED, _SCRIPT = pickle.STACK_GLOBAL, b"__main__"
_dumps = pickle.dumps

#: Whether the collector runs in the middle of `pickle.loads`; threshold of pickles that may make
#: many objects, in bytes; and new objects between two collections meanwhile.
_collector_interrupts = sys.version_info < (3, 12)
_MANY_OBJECTS = 1 << 14
_RARELY = 100_000

#: Classes known by number in this process. Each number is set once, by one thread.
_by_number: dict[ClassNumber, type] = {}
_undefined: dict[ClassNumber, str] = {}
_parent_numbers: dict[type, ClassNumber] = {}
_definitions: dict[ClassNumber, bytes] = {}
_next_number = itertools.count(1)


def class_by_number(origin: int, number: int) -> type:
    """Return a class that was defined before. Pickles name this function."""
    try:
        return _by_number[origin, number]
    except KeyError:
        reason = _undefined.get((origin, number), "its definition never arrived")
        raise pickle.UnpicklingError(f"a class could not be loaded: {reason}") from None


def new_by_number(origin: int, number: int, *args: Any) -> Any:
    """`copyreg.__newobj__` for a class named by number. Pickles name this function."""
    cls = class_by_number(origin, number)
    return cls.__new__(cls, *args)


def make_by_number(origin: int, number: int, made_with: tuple[Any, ...]) -> BaseException:
    """Make an empty exception of a class named by number. Pickles name this function."""
    return exception_parts.make(class_by_number(origin, number), made_with)


def call_by_number(origin: int, number: int, *args: Any) -> Any:
    """Call a class named by number. Pickles name this function."""
    return class_by_number(origin, number)(*args)


def single_by_number(key: by_value.SharedKey, origin: int, number: int, parts: Any) -> Any:
    """Return an object that is known by its identity. Pickles name this function."""
    return by_value.by_its_key(*key, class_by_number(origin, number), parts)


# With extension codes the unpickler finds these three by one cached look-up, and not by an import
# (1 us less for each object). The codes are in the range that Python reserves for private use.
for _code, _function in enumerate((class_by_number, new_by_number, call_by_number), 0x50524F43):
    copyreg.add_extension(__name__, _function.__name__, _code)


def define_class(number: ClassNumber, definition: bytes) -> type | None:
    """Load a class that the other side defined, and return it; None if it cannot be loaded.

    Without the class, decoding of its objects fails, and the error gives the reason.
    """
    try:
        cls: type = decode(definition)
    except BaseException as error:  # noqa: BLE001 - loading runs the user's code
        _undefined[number] = named(error)
        return None
    _by_number[number] = cls
    return cls


def forget_classes(origin: int) -> None:
    """Forget the classes that a dead worker defined."""
    for table in (_by_number, _undefined):
        for number in [n for n in list(table) if n[0] == origin]:
            table.pop(number, None)


def decode(data: bytes | memoryview) -> Any:
    """Make an object from its bytes. Raises the errors of `pickle.loads`."""
    if _collector_interrupts and len(data) >= _MANY_OBJECTS:
        return _decode_at_one_go(data)
    return pickle.loads(data)  # noqa: S301 - it comes from our own parent or child, on a pipe


def _decode_at_one_go(data: bytes | memoryview) -> Any:
    """Decode with few garbage collections.

    Up to Python 3.11 the collector runs in the middle of `loads`, and goes again and again through
    objects that are just being made: with 1,000 records that takes a third of the time. A changed
    threshold does less harm than a disabled collector. If your code changes the threshold
    meanwhile, in another thread or in `__setstate__`, your value stays.
    """
    usual = gc.get_threshold()
    if not 0 < usual[0] < _RARELY:
        return pickle.loads(data)  # noqa: S301 - as above
    rarely = (_RARELY, *usual[1:])
    gc.set_threshold(*rarely)
    try:
        return pickle.loads(data)  # noqa: S301 - as above
    finally:
        if gc.get_threshold() == rarely:
            gc.set_threshold(*usual)


def decode_with(data: bytes | memoryview, buffers: Iterable[bytes | bytearray | memoryview]) -> Any:
    """Decode with the buffers that `Encoder.encode` left out."""
    return pickle.loads(data, buffers=buffers)  # noqa: S301 - as above


def encode_atom(obj: Any) -> bytes:
    """Encode a number or a string."""
    return _dumps(obj, PROTOCOL)


def encode_alone(obj: Any) -> bytes:
    """Encode one object with every definition it needs, also classes and functions by value."""
    buffer = io.BytesIO()
    _AlonePickler(buffer).dump(obj)
    return buffer.getvalue()


def encode_definition(obj: Any, *, shares: bool = True) -> bytes:
    """Encode one object whole, for a process that belongs to this one, as worker or parent.

    An object that cannot travel by value is sent as a name if possible. The object has to be a
    global variable of a module that a worker can import: the logger of a library, for example.

    Args:
        obj: the object.
        shares: whether functions share the script's globals there, as they do in workers.
    """
    buffer = io.BytesIO()
    try:
        _DefinitionPickler(buffer, shares=shares).dump(obj)
    except Exception:
        buffer = io.BytesIO()
        with suppress(Exception):  # the first error says more
            _ByImportPickler(buffer, shares=shares).dump(obj)
            return buffer.getvalue()
        raise
    return buffer.getvalue()


def encode_by_name(obj: Any) -> bytes:
    """Encode one object with plain pickle, classes and functions by their names."""
    buffer = io.BytesIO()
    _NamePickler(buffer, PROTOCOL).dump(obj)
    return buffer.getvalue()


class _NamePickler(pickle.Pickler):
    """Plain pickle, except for exceptions: see `exception_parts`."""

    def reducer_override(self, obj: Any) -> Any:
        """Pickle's hook for everything but plain data."""
        kind = type(obj)
        if issubclass(kind, BaseException) and not exception_parts.has_own_way(kind):
            return exception_parts.reduced(obj)
        return NotImplemented


def travels_by_value(obj: Any) -> bool:
    """Whether a worker could not import this class, function or the like by its name."""
    module = obj.__module__
    path = getattr(obj, "__qualname__", None) or obj.__name__
    if "<locals>" in path or not is_importable(module):
        return True
    found: Any = sys.modules[module]
    for name in path.split("."):
        found = getattr(found, name, None)
    return found is not obj


def is_importable(module: str) -> bool:
    """Whether a worker can import a module; it cannot import the script or a notebook."""
    if module == "__main__" or module not in sys.modules:
        return False
    registered = cloudpickle.list_registry_pickle_by_value()
    return not any(module == name or module.startswith(name + ".") for name in registered)


class Encoder:
    """Encodes objects for one other process. Not thread-safe: it belongs to one thread.

    An encoder tries three ways, the cheapest first: the C pickler alone; the C pickler with a
    reducer for each class known by number; cloudpickle. The first two would pickle a class or
    function of `__main__` as its name, which means nothing in a worker. If such a name shows up in
    the bytes, the encoder tries the next way.

    Args:
        origin: number of the encoding process: `PARENT`, or the number of the worker.
        large: minimum size of a buffer that is left out of the bytes (pickle protocol 5).

    Attributes:
        large: the argument `large`, which you may change before each object.
        buffers: the buffers left out of the last object, which `decode` needs with the bytes.
    """

    def __init__(self, origin: int, large: float = inf) -> None:
        self._origin = origin
        self.large = large
        self.buffers: list[memoryview] = []
        #: Classes that the other side knows by number; None marks a class that travels by name.
        self._known: dict[type, ClassNumber | None] = {}
        self._reducers: dict[type, Callable[[Any], Any]] = {}
        self._undelivered: list[tuple[ClassNumber, bytes]] = []
        _register_spawned_script()
        #: Modules, besides `__main__`, that travel by value.
        self._by_value_names = _registered_names()
        #: Classes, imported by name, whose instances are never pickled as a name.
        self._plain_kinds: set[type] = set()
        #: Whether the last object had "__main__" in it as a text only.
        self._script_is_text = False
        self._renew()

    def encode(self, obj: Any) -> bytes:
        """Encode one object. Raises the errors of pickling.

        Classes that are new to the other side are kept for `take_definitions()`. Send those
        definitions ahead of these bytes.
        """
        # An error of the first two ways is dropped, because the last way reports it better.
        names = self._by_value_names
        if self.buffers:
            self.buffers = []
        if self._script_is_text and (known := self._dump_without_script(obj)) is not None:
            return known
        if type(obj) not in self._reducers:
            try:
                data = _dumps(obj, PROTOCOL, buffer_callback=self._keep_in)
                if _NAMED not in data or (
                    data.rfind(_SCRIPT) < 0 and (not names or self._names_travel(data))
                ):
                    return data
            except Exception:  # noqa: BLE001, S110 - see above
                pass
            self.buffers.clear()
        try:
            data = self._dump_with_reducers(obj)
            if _NAMED not in data or (
                data.rfind(_SCRIPT) < 0 and (not names or self._names_travel(data))
            ):
                return data
            self.buffers.clear()
            if (known := self._dump_without_script(obj)) is not None:
                return known
        except Exception:  # noqa: BLE001 - see above
            self._renew()
        self.buffers.clear()
        buffer = io.BytesIO()
        pickler = _Pickler(
            buffer,
            self.number_of,
            self._reducers,
            self._keep_in,
            shares=self._origin == PARENT,
        )
        pickler.dump(obj)
        return buffer.getvalue()

    def encode_whole(self, obj: Any) -> bytes:
        """Encode one object with all its buffers inside the bytes."""
        return self.encode_with(obj, inf)

    def encode_with(self, obj: Any, large: float) -> bytes:
        """Encode one object with another minimum size of a buffer that is left out."""
        usual, self.large = self.large, large
        try:
            return self.encode(obj)
        finally:
            self.large = usual

    def encode_error(self, error: BaseException, reduced_to_what_travels: bool) -> bytes:
        """Encode an exception, so that it is made again without a call of its class.

        Args:
            error: the exception.
            reduced_to_what_travels: leave out the parts that cannot be pickled, even if the class
                of the exception has its own way of pickling.
        """
        buffer = io.BytesIO()
        _ErrorPickler(buffer, self.number_of, self._reducers, reduced_to_what_travels).dump(error)
        return buffer.getvalue()

    def _keep_in(self, buffer: pickle.PickleBuffer) -> bool:
        """Pickle's hook for a buffer: return whether it stays in the bytes."""
        try:
            raw = buffer.raw()
        except BufferError:  # the buffer is not contiguous
            return True
        if raw.nbytes < self.large:
            return True
        self.buffers.append(raw)
        return False

    def take_definitions(self) -> list[tuple[ClassNumber, bytes]]:
        """Return the definitions that the other side needs before it decodes the last bytes."""
        if not self._undelivered:
            return []
        definitions, self._undelivered = self._undelivered, []
        return definitions

    def look_again(self) -> None:
        """Check which modules the user registered to travel by value; called for each batch."""
        self._by_value_names = _registered_names()

    def know(self, cls: type, number: ClassNumber) -> None:
        """Note that the other side knows a class by a number."""
        self._known[cls] = number
        self._reducers[cls] = _reducer(cls, number)
        self._renew()

    def number_of(self, cls: type) -> ClassNumber | None:
        """Return the number that names a class; None if it travels by name."""
        try:
            return self._known[cls]
        except KeyError:
            if cls.__module__ == "builtins" or not travels_by_value(cls):
                self._known[cls] = None
                return None
        number = self._define(cls)
        self.know(cls, number)
        return number

    def _define(self, cls: type) -> ClassNumber:
        if self._origin != PARENT:
            number = (self._origin, next(_next_number))
            self._undelivered.append((number, encode_definition(cls, shares=False)))
            _by_number[number] = cls
            return number
        # All workers share it, so that a class is pickled once for all of them.
        known = _parent_numbers.get(cls)
        if known is None:
            known = (PARENT, next(_next_number))
            _definitions[known] = encode_definition(cls)
            _by_number[known] = cls
            _parent_numbers[cls] = known
        self._undelivered.append((known, _definitions[known]))
        return known

    def _dump_with_reducers(self, obj: Any) -> bytes:
        buffer, pickler = self._buffer, self._pickler
        buffer.seek(0)
        buffer.truncate()
        try:
            pickler.dump(obj)
        finally:
            pickler.clear_memo()  # at once: the memo keeps the event alive, and views of it
        data = buffer.getvalue()
        if len(data) > _LARGE:
            self._renew()
        return data

    def _dump_without_script(self, obj: Any) -> bytes | None:
        """Encode an object that has "__main__" in it as a text; None if it names the script.

        scikit-learn, for example, sends Python's filters of warnings with each call, and one of
        them has that text.
        """
        buffer = io.BytesIO()
        try:
            _WithoutScript(buffer, self._reducers, self._plain_kinds, self._keep_in).dump(obj)
        except Exception:  # noqa: BLE001 - the last way reports an error better
            data = b""
        else:
            data = buffer.getvalue()
        self._script_is_text = data.rfind(_SCRIPT) >= 0 and self._names_travel(data)
        if self._script_is_text:
            return data
        self.buffers.clear()
        return None

    def _renew(self) -> None:
        """Make a new pickler, because a used one keeps the size of its largest memo."""
        self._buffer = io.BytesIO()
        self._pickler = pickle.Pickler(self._buffer, PROTOCOL, buffer_callback=self._keep_in)
        # A dict, with a copy of the user's registrations with copyreg: the pickler is four times
        # slower with any other mapping.
        self._pickler.dispatch_table = {
            **copyreg.dispatch_table,
            object: _reduce_bare,
            **self._reducers,
        }

    def _names_travel(self, data: bytes) -> bool:
        return all(name not in data for name in self._by_value_names)


def _register_spawned_script() -> None:
    """In a process that multiprocessing spawned, the script has a name that no worker knows."""
    script = sys.modules.get("__mp_main__")
    if script is not None and script.__name__ not in cloudpickle.list_registry_pickle_by_value():
        cloudpickle.register_pickle_by_value(script)


def send_by_value_if_loose(module: object) -> None:
    """Have a module travel by value if a worker cannot import it.

    Args:
        module: name of the module, as objects give it in `__module__`.
    """
    if is_loose(module):
        cloudpickle.register_pickle_by_value(sys.modules[str(module)])


def _registered_names() -> tuple[bytes, ...]:
    """Byte strings that show that the C pickler alone cannot encode an object."""
    modules = cloudpickle.list_registry_pickle_by_value()
    if not modules and not by_value.bare:  # the usual case, checked for each batch
        return ()
    names = [name.encode() for name in modules if name != "__main__"]  # looked for anyway
    if by_value.bare:
        names.append(_BARE)
    return tuple(names)


def _reduce_bare(obj: Any) -> Any:
    """Reduce an `object()`: to its key, if its identity matters."""
    return by_value.single(obj) or obj.__reduce_ex__(PROTOCOL)


def cannot_encode(obj: Any) -> bool:
    """Whether pickling an object fails. The check keeps no bytes."""
    for pickler in _DefinitionPickler, _ByImportPickler:
        with suppress(BaseException):  # the user's code: failing is the answer
            pickler(_Nowhere(), lambda _: False, shares=True).dump(obj)
            return False
    return True


class _Nowhere(io.RawIOBase):
    """A file that keeps no bytes."""

    def write(self, data: Any) -> int:
        """Accept the data and drop it."""
        return len(data)


def _arrives(part: Any) -> bool:
    """Whether an object can be pickled and made again."""
    try:
        buffer = io.BytesIO()
        _ErrorPickler(buffer, _no_number, {}, False).dump(part)
        decode(buffer.getvalue())
    except BaseException:  # noqa: BLE001 - the user's code: failing is the answer
        return False
    return True


def _no_number(_: type) -> None:
    """Give no class a number: each travels by value, or by name."""


def _reduced_error(number: ClassNumber, error: BaseException) -> tuple[Any, ...]:
    """Take an exception apart, with the number of its class in place of the name."""
    _, (_, made_with), *rest = exception_parts.reduced(error)
    return (make_by_number, (*number, made_with), *rest)


def _reducer(cls: type, number: ClassNumber) -> Callable[[Any], Any]:
    """Make the reducer that pickles instances of a class with its number in place of the name."""
    if issubclass(cls, BaseException) and not exception_parts.has_own_way(cls):
        return partial(_reduced_error, number)
    registered = copyreg.dispatch_table.get(cls)

    def reduce(obj: Any) -> Any:
        reduced = obj.__reduce_ex__(PROTOCOL) if registered is None else registered(obj)
        if isinstance(reduced, tuple):
            function, args, *state = reduced
            if not any(state) and (known := by_value.key_of(obj)):
                return single_by_number, (known[0], *number, known[1])
            if function is copyreg.__newobj__ and args[0] is cls:  # type: ignore[attr-defined] # typeshed lacks it
                return (new_by_number, (*number, *args[1:]), *state)
            if function is cls:
                return (call_by_number, (*number, *args), *state)
            return reduced
        known = by_value.key_of(obj)
        return (single_by_number, (known[0], *number, known[1])) if known else reduced

    return reduce


class _WithoutScript(pickle.Pickler):
    """Plain pickle that fails at each class, function or other object of a module by value."""

    def __init__(
        self,
        file: io.BytesIO,
        reducers: dict[type, Callable[[Any], Any]],
        plain_kinds: set[type],
        keep_in: Callable[[pickle.PickleBuffer], bool],
    ) -> None:
        super().__init__(file, PROTOCOL, buffer_callback=keep_in)
        self._reducers = reducers
        self._plain_kinds = plain_kinds
        self.dispatch_table = {**copyreg.dispatch_table, object: _reduce_bare}

    def reducer_override(self, obj: Any) -> Any:
        """Pickle's hook for everything but plain data; called for each class and instance."""
        kind: Any = type(obj)
        if kind in self._plain_kinds:
            return NotImplemented
        if kind in self._reducers:
            return self._reducers[kind](obj)
        if issubclass(kind, (type, types.FunctionType)):
            if not is_importable(obj.__module__):
                raise pickle.PicklingError("it belongs to the script")
            return NotImplemented
        reduce = self.dispatch_table.get(kind)
        if reduce is not None:
            reduced = reduce(obj)
        elif kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__:
            if not is_importable(kind.__module__):
                raise pickle.PicklingError("it belongs to the script")
            self._plain_kinds.add(kind)
            return NotImplemented
        else:
            reduced = obj.__reduce_ex__(PROTOCOL)
        if isinstance(reduced, str) and not is_importable(getattr(obj, "__module__", "__main__")):
            raise pickle.PicklingError("it belongs to the script")
        return reduced


class _AlonePickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    """cloudpickle's pickler, with types added that it does not know.

    From version 3.1.3 on cloudpickle leaves out the file names of functions. A worker's traceback,
    or the stack of a handler that hangs, would then not name the file. So this pickler puts the
    names in again.
    """

    def __init__(
        self, file: io.IOBase, keep_in: Callable[[pickle.PickleBuffer], bool] | None = None
    ) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=keep_in)

    def reducer_override(self, obj: Any) -> Any:
        """Pickle's hook for everything but plain data."""
        kind = type(obj)
        if kind is types.FunctionType or issubclass(kind, type):
            send_by_value_if_loose(obj.__module__)
        if kind is types.CodeType:
            make, args = cloudpickle.Pickler.dispatch_table[types.CodeType](obj)
            # Only strings are compared, because `python -bb` forbids comparing bytes with a string.
            named = (
                obj.co_filename if isinstance(arg, str) and arg == "<dynamic-code>" else arg
                for arg in args
            )
            return make, tuple(named)
        if kind in by_value.UNNAMED:
            return by_value.UNNAMED[kind](obj)
        if issubclass(kind, BaseException) and not exception_parts.has_own_way(kind):
            return exception_parts.reduced(obj)
        reduced = super().reducer_override(obj)
        if issubclass(kind, type) and isinstance(reduced, tuple) and len(reduced) == _IN_FULL:
            return reduce_class(obj, reduced, travels_by_value)
        return reduced


#: Number of parts in a description that makes a function or class by value.
_IN_FULL = 6


class _DefinitionPickler(_AlonePickler):
    """Pickles for workers of this process, where functions of one module share their globals."""

    def __init__(
        self,
        file: io.BytesIO | _Nowhere,
        keep_in: Callable[[pickle.PickleBuffer], bool] | None = None,
        *,
        shares: bool,
    ) -> None:
        super().__init__(file, keep_in)
        self._shares = shares
        self._variables: dict[str, script_globals.ModuleGlobals] = {}

    def reducer_override(self, obj: Any) -> Any:
        """Pickle's hook for everything but plain data."""
        reduced = super().reducer_override(obj)
        if reduced is not NotImplemented:
            if type(obj) is types.FunctionType and len(reduced) == _IN_FULL:
                return self._reduce_function(obj, reduced)
            return reduced
        kind = type(obj)
        if kind in by_value.NAMED:
            return by_value.NAMED[kind](obj) if travels_by_value(obj) else NotImplemented
        if by_value.counts_here(kind):
            raise TypeError(
                "a progress bar counts in the process that has it: keep it in this one, and update "
                'it in a kind="io" handler, or use stream(..., progress=True)'
            )
        if kind is ContextVar:
            return by_value.new_single(obj, is_importable, always=True)
        if kind in self.dispatch_table or issubclass(kind, type | types.FunctionType):
            return NotImplemented
        reduced = obj.__reduce_ex__(PROTOCOL)
        if isinstance(reduced, str):
            module = getattr(obj, "__module__", None)
            by_name = not isinstance(module, str) or is_importable(module)
            return reduced if by_name else by_value.new_single(obj, is_importable, always=True)
        if by_value.is_stateless(reduced):
            return self._name_single(obj) or reduced
        return self._share(obj, reduced)

    def _name_single(self, obj: Any) -> Any:
        return by_value.new_single(obj, is_importable)

    def _share(self, obj: Any, reduced: Any) -> Any:
        return by_value.share_by_key(obj, reduced) if self._shares else reduced

    def _reduce_function(self, function: types.FunctionType, reduced: tuple[Any, ...]) -> Any:
        """Let functions of one module share their globals in the worker too."""
        make, (code, own, *rest), (inside, slots), _, _, set_state = reduced
        module = script_globals.shared_name(function.__globals__)
        if module is None or not self._shares:
            return reduced
        values = slots["__globals__"]
        variables = self._variables.setdefault(module, script_globals.ModuleGlobals(module, own))
        state = (inside, {**slots, "__globals__": {}})
        filling = set_state, state, module, script_globals.note(module, values), values
        args = (code, variables, *rest)
        return make, args, filling, None, None, script_globals.set_function


class _ByImportPickler(_DefinitionPickler):
    """Pickles global variables of importable modules by name, also when a function uses them."""

    def reducer_override(self, obj: Any) -> Any:
        """Pickle's hook for everything but plain data."""
        named = by_value.by_import(obj, is_importable)
        return named or super().reducer_override(obj)

    def _reduce_function(self, function: types.FunctionType, reduced: tuple[Any, ...]) -> Any:
        make, (code, _, *rest), (inside, slots), _, _, set_state = reduced
        module = script_globals.shared_name(function.__globals__)
        if module is None or not is_importable(module):
            return super()._reduce_function(function, reduced)
        state = (inside, {**slots, "__globals__": {}})
        args = (code, script_globals.Imported(module), *rest)
        return make, args, state, None, None, set_state


class _Pickler(_DefinitionPickler):
    """Pickles classes by number, if they have one."""

    def __init__(
        self,
        file: io.BytesIO,
        number_of: Callable[[type], ClassNumber | None],
        reducers: dict[type, Callable[[Any], Any]],
        keep_in: Callable[[pickle.PickleBuffer], bool],
        *,
        shares: bool,
    ) -> None:
        super().__init__(file, keep_in, shares=shares)
        self._number_of = number_of
        self._reducers = reducers

    def reducer_override(self, obj: Any) -> Any:
        """Pickle's hook for everything but plain data; called for each class and instance."""
        kind = type(obj)
        if kind in self._reducers:
            return self._reducers[kind](obj)
        if issubclass(kind, type):
            number = self._number_of(obj)
            if number is not None:
                return class_by_number, number
        return super().reducer_override(obj)

    def _name_single(self, obj: Any) -> Any:
        return by_value.single(obj)  # other such objects came with a handler or class

    def _share(self, _: Any, reduced: Any) -> Any:
        return reduced  # each event has copies of its own


class _ErrorPickler(_Pickler):
    """A pickler that takes exceptions apart, nested ones too."""

    def __init__(
        self,
        file: io.BytesIO,
        number_of: Callable[[type], ClassNumber | None],
        reducers: dict[type, Callable[[Any], Any]],
        reduced_to_what_travels: bool,
    ) -> None:
        super().__init__(file, number_of, reducers, lambda _: True, shares=False)
        self._reduced = reduced_to_what_travels

    def reducer_override(self, obj: Any) -> Any:
        """Pickle's hook for everything but plain data."""
        if issubclass(type(obj), BaseException):
            if self._reduced:
                return exception_parts.reduced(obj, _arrives)
            if not exception_parts.has_own_way(type(obj)):
                return exception_parts.reduced(obj)
        return super().reducer_override(obj)
