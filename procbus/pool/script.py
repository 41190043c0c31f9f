# SPDX-License-Identifier: MIT
"""The settings of a worker, and settings of the script's process that the worker should have too.

The script's settings are read when a worker is launched. Settings of one thread or context, such as
the context of `decimal`, are not included. Nor is the stack size of threads: Python can read it
only by changing it.
"""

from __future__ import annotations

import builtins
import contextlib
import multiprocessing
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from procbus.codec.encoder import decode
from procbus.core.context import Run

#: Action, pattern of the text, category by module and name, pattern of the module, line.
_Filter = tuple[str, Any, tuple[str, str], Any, int]


class ScriptSettings(NamedTuple):
    """The settings that script and workers share."""

    recursion_limit: int
    int_digits: int
    switch_interval_s: float
    #: The start method of `multiprocessing`; None for its default.
    start_method: str | None
    #: The locale, all categories in one string; None if the script has set none.
    locale: str | None
    warning_filters: tuple[_Filter, ...]

    @classmethod
    def taken(cls) -> ScriptSettings:
        """The present settings of this process."""
        return cls(
            sys.getrecursionlimit(),
            sys.get_int_max_str_digits(),
            sys.getswitchinterval(),
            multiprocessing.get_start_method(allow_none=True),
            _locale(),
            tuple(_filters()),
        )

    def apply(self) -> None:
        """Make these the settings of this process."""
        sys.setrecursionlimit(self.recursion_limit)
        sys.set_int_max_str_digits(self.int_digits)
        sys.setswitchinterval(self.switch_interval_s)
        with contextlib.suppress(ValueError):  # in a worker, loky's start method is unknown
            multiprocessing.set_start_method(self.start_method, force=True)
        if self.locale is not None:
            import locale

            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, self.locale)
        self._filter_warnings()

    def _filter_warnings(self) -> None:
        filters: list[Any] = []
        for action, text, (module, name), where, line in self.warning_filters:
            # A category that cannot be found belongs to a library that this process has not
            # imported, so it is not needed yet.
            category = getattr(sys.modules.get(module), name, None)
            if isinstance(category, type):
                filters.append((action, text, category, where, line))
        if filters != warnings.filters:
            warnings.resetwarnings()  # it also resets caches of earlier decisions
            warnings.filters[:] = filters  # type: ignore[index]


class WorkerSettings(NamedTuple):
    """The settings that a worker gets at its start."""

    #: Number of the worker, unique in the parent.
    number: int
    parent_pid: int
    #: Niceness of the worker; None for its parent's.
    nice: int | None
    #: The run of the bus, for `current()`.
    run: Run
    #: Levels of the parent's loggers that have a level set.
    log_levels: dict[str, int]
    #: Maximum wait of finished results for more of their batch, in seconds; None for the default.
    flush_s: float | None = None
    #: Settings of the script's process; None if the worker is on another machine.
    script: ScriptSettings | None = None
    #: Whether the worker ignores SIGTERM. A service manager may send the signal to all processes of
    #: a service, and the script ends its workers itself when it has finished.
    keeps_on: bool = False
    #: The worker's number in the lane, for `current().worker`.
    place: int = 0
    #: Environment variables that only this worker gets.
    environment: Mapping[str, str] | None = None
    #: The functions of handlers with eager resources, pickled; empty for none.
    eager: bytes = b""


class PathSince:
    """The directories added to the script's import path since this object was made.

    Workers that were started before may lack these directories.
    """

    def __init__(self) -> None:
        self._known = frozenset(sys.path)

    def complete(self, definition: bytes) -> bytes:
        """Add the new directories to an encoded object, for the process that loads it."""
        if self._known.issuperset(sys.path):  # the usual case
            return definition
        return pickle.dumps(_LoadedFrom(list(sys.path), definition))


class _LoadedFrom:
    """Pickles as a call of `load_from`."""

    def __init__(self, path: list[str], definition: bytes) -> None:
        self._path = path
        self._definition = definition

    def __reduce__(self) -> tuple[Any, ...]:
        return load_from, (self._path, self._definition)


def load_from(path: list[str], definition: bytes) -> Any:
    """Add the script's directories to the worker's import path, and load an encoded object."""
    sys.path[:] = [*path, *(place for place in sys.path if place not in path)]
    return decode(definition)


def _locale() -> str | None:
    locale = sys.modules.get("locale")
    if locale is None:
        return None
    found: str = locale.setlocale(locale.LC_ALL)
    return found


def _filters() -> Iterator[_Filter]:
    found: list[Any] = list(warnings.filters)
    for action, text, category, where, line in found:
        module = category.__module__
        if module == builtins.__name__ or module in sys.modules:
            yield action, text, (module, category.__qualname__), where, line
