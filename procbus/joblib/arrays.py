# SPDX-License-Identifier: MIT
"""Large arrays that several calls of joblib have in common: all workers map one copy."""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from procbus.joblib.calls import InFile, OneCall


class SharedArrays:
    """The arrays of one `joblib.Parallel`. joblib calls it under a lock of its own.

    An array that comes the second time is copied into an anonymous file in memory. The files end
    with this process, however that ends, and have no name that others could open. An array that
    comes once travels as every large event does.

    Args:
        least: size from which arrays are shared, in bytes; None for none.
        mode: how workers map them: "r", "r+" or "c", as for `numpy.memmap`; None shares none.
    """

    def __init__(self, least: int | None, mode: str | None) -> None:
        shares = least is not None and mode is not None and hasattr(os, "memfd_create")
        self._least = least if shares else None
        self._mode = {"w+": "r+"}.get(mode or "r", mode or "r")
        #: The arrays seen once, and the ones that have a file, by identity.
        self._seen: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._files: dict[int, tuple[Any, InFile]] = {}
        self._descriptors: list[int] = []

    def share(self, call: OneCall) -> OneCall:
        """Replace the large arrays among the arguments of a call."""
        numpy = sys.modules.get("numpy")
        if self._least is None or numpy is None:
            return call
        function, args, kwargs = call
        if not any(self._is_large(each, numpy) for each in (*args, *kwargs.values())):
            return call
        return (
            function,
            [self._shared(each, numpy) for each in args],
            {name: self._shared(each, numpy) for name, each in kwargs.items()},
        )

    def close(self) -> None:
        """Close the files. Workers that have mapped one keep it mapped. Idempotent."""
        self._files.clear()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _is_large(self, value: Any, numpy: Any) -> bool:
        return (
            isinstance(value, numpy.ndarray)
            and value.nbytes >= (self._least or 0)
            and not value.dtype.hasobject
        )

    def _shared(self, value: Any, numpy: Any) -> Any:
        if not self._is_large(value, numpy):
            return value
        found = self._files.get(id(value))
        if found is not None:
            return found[1]
        if isinstance(value, numpy.memmap) and isinstance(value.base, mmap.mmap):
            return self._note(value, _of_file(value, self._mode)) or value
        if type(value) is not numpy.ndarray:
            return value
        if self._seen.get(id(value)) is not value:
            self._seen[id(value)] = value
            return value
        with suppress(OSError):  # no memory, or no descriptor: it travels with each call
            return self._note(value, self._copied(value))
        return value

    def _note(self, value: Any, file: InFile | None) -> InFile | None:
        if file is not None:
            self._files[id(value)] = value, file
        return file

    def _copied(self, value: Any) -> InFile:
        descriptor = os.memfd_create("procbus-joblib")
        self._descriptors.append(descriptor)
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        file = InFile(path, "r+", value.dtype, 0, value.shape, order)
        file.load()[...] = value
        return file._replace(mode=self._mode)


def _of_file(value: Any, mode: str) -> InFile | None:
    """A mapped file of the user's own, so that workers map it too; None for a private copy."""
    if value.filename is None or value.mode == "c":
        return None
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    mode = "r" if value.mode == "r" else mode
    return InFile(str(value.filename), mode, value.dtype, value.offset, value.shape, order)
