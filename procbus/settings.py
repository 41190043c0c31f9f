# SPDX-License-Identifier: MIT
"""The options of a bus, checked when it is made."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from procbus.errors import OptionError

_KNOWN = ("handlers", "cpu_workers", "io_workers", "max_pending", "on_full")
#: Workers of one kind that nobody means.
_ABSURD = 10_000


def check_settings(
    cpu_workers: object,
    io_workers: object,
    max_pending: object,
    on_full: object,
    journal: object,
    unknown: Mapping[str, object],
) -> None:
    """Check the options of `EventBus`.

    Raises:
        OptionError: one makes no sense; the message says what would.
    """
    for name in unknown:
        close = difflib.get_close_matches(name, _KNOWN, 1)
        hint = f"; did you mean {close[0]}=?" if close else ""
        raise OptionError(f"EventBus has no option {name}={hint} It has: {', '.join(_KNOWN)}")
    if journal is not None:
        raise OptionError("journal= is not supported by this version of procbus: leave it out")
    for name, value in (("cpu_workers", cpu_workers), ("io_workers", io_workers)):
        if value is not None and not (_is_count(value) and int(str(value)) <= _ABSURD):
            raise OptionError(f"{name} must be a whole number from 1 to {_ABSURD}, not {value!r}")
    if not _is_count(max_pending):
        raise OptionError(f"max_pending must be a whole number from 1 up, not {max_pending!r}")
    if on_full not in ("block", "raise"):
        raise OptionError(f'on_full must be "block" or "raise", not {on_full!r}')


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
