# SPDX-License-Identifier: MIT
"""What a script has set in its process, for workers to have it too: they are other processes.

It is taken when a worker is launched. The settings of one thread or one context, as the context of
`decimal`, stay there; so does the stack size of threads, which cannot be read without resetting it.
"""

from __future__ import annotations

import builtins
import contextlib
import multiprocessing
import pickle
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from procbus.codec.encoder import decode

#: Action, pattern of the text, category by module and name, pattern of the module, line.
_Filter = tuple[str, Any, tuple[str, str], Any, int]


class ScriptSettings(NamedTuple):
    """What is the same in script and workers."""

    recursion_limit: int
    int_digits: int
    switch_interval_s: float
    #: How `multiprocessing` starts processes; None for its default.
    start_method: str | None
    #: Of the locale, all categories in one; None where the script has set none.
    locale: str | None
    warning_filters: tuple[_Filter, ...]

    @classmethod
    def taken(cls) -> ScriptSettings:
        """What holds in this process now."""
        return cls(
            sys.getrecursionlimit(),
            sys.get_int_max_str_digits(),
            sys.getswitchinterval(),
            multiprocessing.get_start_method(allow_none=True),
            _locale(),
            tuple(_filters()),
        )

    def apply(self) -> None:
        """Have it hold in this process."""
        sys.setrecursionlimit(self.recursion_limit)
        sys.set_int_max_str_digits(self.int_digits)
        sys.setswitchinterval(self.switch_interval_s)
        with contextlib.suppress(ValueError):  # loky's own, in a worker: it is not imported here
            multiprocessing.set_start_method(self.start_method, force=True)
        if self.locale is not None:
            import locale

            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, self.locale)
        self._filter_warnings()

    def _filter_warnings(self) -> None:
        filters: list[Any] = []
        for action, text, (module, name), where, line in self.warning_filters:
            # A category of a library that nobody has imported here is not needed yet either.
            category = getattr(sys.modules.get(module), name, None)
            if isinstance(category, type):
                filters.append((action, text, category, where, line))
        if filters != warnings.filters:
            warnings.resetwarnings()  # it also tells those who keep what they have decided
            warnings.filters[:] = filters  # type: ignore[index]


class PathSince:
    """Where the script has come to find modules since this was made: workers may not know of it."""

    def __init__(self) -> None:
        self._known = frozenset(sys.path)

    def complete(self, definition: bytes) -> bytes:
        """Have whoever loads this object, as pickled, find its modules there too."""
        if self._known.issuperset(sys.path):  # nearly always
            return definition
        return pickle.dumps(_Found(list(sys.path), definition))


class _Found:
    """Travels as what `load_from` gives."""

    def __init__(self, path: list[str], definition: bytes) -> None:
        self._path = path
        self._definition = definition

    def __reduce__(self) -> tuple[Any, ...]:
        return load_from, (self._path, self._definition)


def load_from(path: list[str], definition: bytes) -> Any:
    """In a worker: find modules where the script does, and load an object, as pickled."""
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
