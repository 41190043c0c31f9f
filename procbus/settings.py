# SPDX-License-Identifier: MIT
"""The options of a bus, checked when it is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from math import inf
from os import PathLike
from typing import TYPE_CHECKING, Any

from procbus.core.errors import OptionError, SerializationError
from procbus.core.handler import OPTIONS_OF_A_BUS, OPTIONS_OF_A_HANDLER
from procbus.core.introspection import accepts, is_async, is_generator, name_of
from procbus.core.validation import (
    did_you_mean,
    format_size,
    is_real,
    is_whole,
    parse_keep,
    parse_limit,
    parse_size,
    shown,
)

if TYPE_CHECKING:
    from procbus.core.dead_letter import DeadLetter
    from procbus.core.validation import Keep
    from procbus.dispatch.admission import OnFull
    from procbus.journal.codec import CodecName
    from procbus.journal.journal import Durability
    from procbus.pool.dask.pool import DaskPool
    from procbus.pool.memory.events import OnOversize
    from procbus.system.sigterm import OnSigterm

_KNOWN = ("handlers", *OPTIONS_OF_A_BUS)
#: Workers of one kind that nobody means.
MOST_WORKERS = 10_000
#: A day: whatever sends SIGTERM sends SIGKILL long before.
_LONGEST_GRACE_S = 86_400
#: The most that a process can be.
_NICEST = 19
#: Least bytes of shared memory that are of any use, and of a buffer that is worth the trouble.
_LEAST_SHARED = 1 << 20
_LEAST_THRESHOLD = 1 << 12


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a bus in one form; what each does stands with `EventBus`."""

    cpu_workers: int | None
    io_workers: int | None
    max_pending: int
    on_full: OnFull
    worker_init: Callable[[], object] | None
    max_events_per_worker: int | None
    #: Bytes.
    worker_max_memory: int | None
    worker_nice: int
    on_failure: Callable[[DeadLetter], object] | None
    #: Bytes; None for a share of what is free.
    shared_memory_limit: int | None
    shared_memory_threshold: int
    on_oversize: OnOversize
    #: Path of the journal; None for none.
    journal: str | None
    durability: Durability
    #: Seconds for which what is finished is kept; 0 for not at all.
    keep_s: float
    keep_results: bool
    journal_codec: CodecName
    #: Where cpu handlers run; None for processes of this machine.
    cpu: DaskPool | None
    on_sigterm: OnSigterm
    #: Seconds for which what is pending may go on after that.
    grace_s: float
    carry: tuple[ContextVar[Any], ...]


def make_settings(
    *,
    cpu: DaskPool | None,
    cpu_workers: int | None,
    io_workers: int | None,
    max_pending: int,
    on_full: OnFull,
    journal: str | PathLike[str] | None,
    durability: Durability,
    keep: Keep,
    keep_results: bool,
    journal_codec: CodecName,
    worker_init: Callable[[], object] | None,
    max_events_per_worker: int | None,
    worker_max_memory: int | str | None,
    worker_nice: int,
    on_failure: Callable[[DeadLetter], object] | None,
    shared_memory_limit: int | str | None,
    shared_memory_threshold: int | str,
    on_oversize: OnOversize,
    on_sigterm: OnSigterm,
    grace: float,
    carry: Iterable[ContextVar[Any]],
    unknown: Mapping[str, object],
) -> Settings:
    """Check the options of `EventBus`.

    Raises:
        OptionError: one makes no sense; the message says what would.
        SerializationError: `worker_init` holds something that cannot travel to a worker.
    """
    _refuse_unknown(unknown)
    for name, value, most in (
        ("cpu_workers", cpu_workers, MOST_WORKERS),
        ("io_workers", io_workers, MOST_WORKERS),
        ("max_events_per_worker", max_events_per_worker, inf),
    ):
        if value is not None:
            _check_count(name, value, most)
    _check_count("max_pending", max_pending, inf)
    if on_full not in ("block", "raise"):
        raise OptionError(f'on_full must be "block" or "raise", not {shown(on_full)}')
    if on_oversize not in ("pipe", "fail"):
        raise OptionError(f'on_oversize must be "pipe" or "fail", not {shown(on_oversize)}')
    if on_sigterm not in ("finish", "put_away", None):
        raise OptionError(
            f'on_sigterm must be "finish", "put_away" or None, not {shown(on_sigterm)}'
        )
    if not is_real(grace, 0, _LONGEST_GRACE_S):
        raise OptionError(
            f"grace must be a number of seconds from 0 to {_LONGEST_GRACE_S}, not {shown(grace)}"
        )
    keep_s = _check_journal(journal, durability, keep, keep_results, journal_codec)
    if worker_init is not None:
        _check_function("worker_init", worker_init, ())
        _check_travels(worker_init)
    if on_failure is not None:
        _check_function("on_failure", on_failure, ("the dead letter",))
    if not is_whole(worker_nice, 0, _NICEST):
        raise OptionError(
            f"worker_nice must be a whole number from 0 to {_NICEST}, not {shown(worker_nice)}"
        )
    if cpu is not None:
        _check_pool(cpu, worker_max_memory, worker_nice)
    return Settings(
        cpu_workers=cpu_workers,
        io_workers=io_workers,
        max_pending=max_pending,
        on_full=on_full,
        worker_init=worker_init,
        max_events_per_worker=max_events_per_worker,
        worker_max_memory=None if worker_max_memory is None else _memory(worker_max_memory),
        worker_nice=worker_nice,
        on_failure=on_failure,
        shared_memory_limit=(
            None
            if shared_memory_limit is None
            else _shared("shared_memory_limit", shared_memory_limit, _LEAST_SHARED, or_none=True)
        ),
        shared_memory_threshold=_shared(
            "shared_memory_threshold", shared_memory_threshold, _LEAST_THRESHOLD
        ),
        on_oversize=on_oversize,
        journal=None if journal is None else os.fspath(journal),
        durability=durability,
        keep_s=keep_s,
        keep_results=keep_results,
        journal_codec=journal_codec,
        cpu=cpu,
        on_sigterm=on_sigterm,
        grace_s=float(grace),
        carry=_check_carry(carry),
    )


def _refuse_unknown(unknown: Mapping[str, object]) -> None:
    for name in unknown:
        if name in OPTIONS_OF_A_HANDLER:
            raise OptionError(
                f"{name}= is an option of a handler, not of EventBus: @subscribe({name}=...)"
            )
        hint = did_you_mean(name, _KNOWN, "=") or "."
        raise OptionError(f"EventBus has no option {name}={hint} It has: {', '.join(_KNOWN)}")


def _check_journal(
    journal: object, durability: object, keep: object, keep_results: object, codec: object
) -> float:
    """Check what belongs to the journal; give the seconds for which what is finished is kept."""
    if journal is not None and not (isinstance(journal, str | PathLike) and os.fspath(journal)):
        raise OptionError(f"journal must be the path of a file, not {shown(journal)}")
    for name, value, choices in (
        ("durability", durability, ("process", "power")),
        ("keep_results", keep_results, (True, False)),
        ("journal_codec", codec, ("pickle", "json")),
    ):
        if not any(value is choice or value == choice for choice in choices):
            words = " or ".join(f'"{c}"' if isinstance(c, str) else str(c) for c in choices)
            raise OptionError(f"{name} must be {words}, not {shown(value)}")
    try:
        return parse_keep(keep)
    except ValueError as error:
        raise OptionError(f"keep {error}") from None


def _check_carry(carry: object) -> tuple[ContextVar[Any], ...]:
    """Check that these are context variables, and that workers can get to know them."""
    if not isinstance(carry, Iterable) or isinstance(carry, str | bytes):
        raise OptionError(f"carry must be a list of ContextVars, such as [var], not {shown(carry)}")
    given = list(carry)
    for each in given:
        if not isinstance(each, ContextVar):
            raise OptionError(
                f"carry takes ContextVars alone, not {shown(each)}; keep what is to be taken along "
                "in a contextvars.ContextVar, and set it before you publish"
            )
    variables = tuple(dict.fromkeys(given))
    if variables:
        # Imported here because it needs cloudpickle, and a bus may do without workers.
        from procbus.codec.fault_path import check_variables

        check_variables(variables)
    return variables


def _check_pool(cpu: object, worker_max_memory: object, worker_nice: int) -> None:
    if not hasattr(cpu, "open"):
        raise OptionError(f"cpu must be a DaskPool, or None for this machine, not {shown(cpu)}")
    for name, given in (
        ("worker_max_memory", worker_max_memory is not None),
        ("worker_nice", worker_nice),
    ):
        if given:
            raise OptionError(
                f"{name} is for workers of this machine: leave it out with cpu=DaskPool(...)"
            )


def _check_count(name: str, value: object, most: float) -> None:
    if not is_whole(value, 1, most):
        bound = "up" if most == inf else f"to {most}"
        raise OptionError(f"{name} must be a whole number from 1 {bound}, not {shown(value)}")


def _memory(value: int | str) -> int:
    try:
        return parse_limit(value)
    except ValueError as error:
        raise OptionError(f"worker_max_memory: {error}") from None


def _shared(option: str, value: int | str, least: int, *, or_none: bool = False) -> int:
    try:
        size = parse_size(value)
    except ValueError as error:
        raise OptionError(f"{option}: {error}") from None
    if size < least and not (or_none and size == 0):
        nothing = ", or 0 for none" if or_none else ""
        raise OptionError(
            f"{option} must be {format_size(least)} at least{nothing}, not {shown(value)}"
        )
    return size


def _check_function(option: str, function: Callable[..., object], given: tuple[str, ...]) -> None:
    takes = f"takes {given[0]}" if given else "takes no argument"
    if not callable(function):
        raise OptionError(f"{option} must be a function that {takes}, not {shown(function)}")
    name = name_of(function)
    if is_async(function):
        raise OptionError(f"{option}={name} is async, but no event loop runs it: make it a def")
    if is_generator(function):
        raise OptionError(
            f"{option}={name} is a generator function: calling it would run nothing; "
            f"write it without yield"
        )
    if not accepts(function, len(given)):
        raise OptionError(
            f"{option}={name} must be a function that {takes} and requires nothing else; "
            f"give its parameters defaults, or bind them with functools.partial"
        )


def _check_travels(worker_init: Callable[[], object]) -> None:
    # Imported here because they need cloudpickle, and a bus may do without workers.
    from procbus.codec.encoder import encode_definition
    from procbus.codec.fault_path import path_of_fault

    try:
        encode_definition(worker_init)
    except Exception as error:
        name = name_of(worker_init)
        path = path_of_fault(worker_init, name)
        raise SerializationError(
            f"worker_init={name} cannot travel to a worker process"
            f"{f' because of {path}' if path else ''}: {type(error).__name__}: {error}. "
            f"Make that object inside the function",
            path,
        ) from error
