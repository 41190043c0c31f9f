# SPDX-License-Identifier: MIT
"""Large arrays that several calls of joblib have in common: all workers map one copy."""

from __future__ import annotations

import mmap
import os
import sys
from itertools import chain
from operator import itemgetter
from typing import Any
from weakref import finalize

from procbus.joblib.calls import InFile, OneCall

#: Parts of a call. A batch may have thousands of calls, so C code looks through them.
_ARGS, _KWARGS = itemgetter(1), itemgetter(2)


class SharedArrays:
    """The arrays of one `joblib.Parallel`. joblib calls the methods under its own lock.

    A large array is copied into an anonymous file in memory with the first call that has it. The
    file ends with the array, with the `joblib.Parallel`, or with this process, however that ends.
    The file has no name that others could open.

    Args:
        least: size from which arrays are shared, in bytes; None for none.
        mode: how workers map the arrays: "r", "r+" or "c", as for `numpy.memmap`; None shares none.
    """

    def __init__(self, least: int | None, mode: str | None) -> None:
        shares = least is not None and mode is not None and hasattr(os, "memfd_create")
        self._least = least if shares else None
        self._mode = {"w+": "r+"}.get(mode or "r", mode or "r")
        #: The file of each array, by the array's identity, and the function that ends it.
        self._files: dict[int, tuple[InFile, finalize[..., Any]]] = {}

    def share(self, calls: list[OneCall]) -> list[OneCall]:
        """Replace the large arrays among the arguments of calls.

        The given calls must be kept until they are done, because a file ends with its array.
        """
        numpy = sys.modules.get("numpy")
        if self._least is None or numpy is None:
            return calls
        kinds = set(map(type, chain.from_iterable(map(_ARGS, calls))))
        if any(map(_KWARGS, calls)):
            kinds.update(type(each) for *_, kwargs in calls for each in kwargs.values())
        if not any(issubclass(kind, numpy.ndarray) for kind in kinds):
            return calls
        return [self._with_files(call, numpy) for call in calls]

    def close(self) -> None:
        """Close the files. Workers that have mapped one keep it mapped. Idempotent."""
        for _, end in list(self._files.values()):
            end()

    def _with_files(self, call: OneCall, numpy: Any) -> OneCall:
        function, args, kwargs = call
        return (
            function,
            [self._shared(each, numpy) for each in args],
            {name: self._shared(each, numpy) for name, each in kwargs.items()},
        )

    def _shared(self, value: Any, numpy: Any) -> Any:
        if not isinstance(value, numpy.ndarray) or value.nbytes < (self._least or 0):
            return value
        if value.dtype.hasobject:
            return value
        found = self._files.get(id(value))
        if found is not None:
            return found[0]
        if isinstance(value, numpy.memmap) and isinstance(value.base, mmap.mmap):
            return _of_file(value, self._mode) or value
        if type(value) is not numpy.ndarray:
            return value
        try:
            return self._copied(value)
        except OSError:  # no memory, or no descriptor: the array travels with each call
            return value

    def _copied(self, value: Any) -> InFile:
        descriptor = os.memfd_create("procbus-joblib")
        end = finalize(value, self._end, id(value), descriptor)
        end.atexit = False
        try:
            order = _fill(descriptor, value)
        except BaseException:
            end()
            raise
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        file = InFile(path, self._mode, value.dtype, 0, value.shape, order)
        self._files[id(value)] = file, end
        return file

    def _end(self, key: int, descriptor: int) -> None:
        self._files.pop(key, None)
        os.close(descriptor)


def _fill(descriptor: int, value: Any) -> str:
    """Write the numbers of an array into a file; return their order there, "C" or "F"."""
    rest = memoryview(value.ravel("A").view("u1"))
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return _order_of(value)


def _order_of(value: Any) -> str:
    return "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"


def _of_file(value: Any, mode: str) -> InFile | None:
    """The user's own file of a mapped array, for workers to map it too; None for a private copy."""
    if value.filename is None or value.mode == "c":
        return None
    mode = "r" if value.mode == "r" else mode
    path, order = str(value.filename), _order_of(value)
    return InFile(path, mode, value.dtype, value.offset, value.shape, order)
