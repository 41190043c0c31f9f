# SPDX-License-Identifier: MIT
"""The limits and retries of a handler, checked and in one form."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from procbus.amounts import is_real, is_whole
from procbus.backoff import Backoff, make_backoff
from procbus.hints import shown
from procbus.sizes import parse_limit

if TYPE_CHECKING:
    from procbus.handler import DeclaredKind


class LimitOptions(TypedDict, total=False):
    """Those options of a handler that `make_limits` checks."""

    timeout: float | None
    retries: int
    backoff: float | Sequence[float] | Backoff | None
    retry_on: type[BaseException] | Sequence[type[BaseException]]
    max_crashes: int
    max_memory: int | str | None
    writable: bool


class HandlerOptions(LimitOptions, total=False):
    """The options of a handler; what each does stands with `procbus.subscribe`."""

    kind: DeclaredKind
    name: str | None
    key: Callable[[Any], Hashable] | None
    priority: int
    concurrency: int | None
    where: Callable[[Any], bool] | None
    once: bool


OPTIONS_OF_A_HANDLER = tuple(HandlerOptions.__annotations__)
OPTIONS_OF_A_BUS = (
    "cpu",
    "cpu_workers",
    "io_workers",
    "max_pending",
    "on_full",
    "worker_init",
    "max_events_per_worker",
    "worker_max_memory",
    "worker_nice",
    "on_failure",
    "shared_memory_limit",
    "shared_memory_threshold",
    "on_oversize",
    "journal",
    "durability",
    "keep",
    "keep_results",
    "journal_codec",
    "on_sigterm",
    "grace",
    "carry",
)

DEFAULT_MAX_CRASHES = 1

_MOST_RETRIES = 1_000
_LONGEST_TIMEOUT = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits and retries of one handler; the fields are those of `Handler`."""

    timeout: float | None
    retries: int
    backoff: Backoff
    retry_on: tuple[type[BaseException], ...]
    max_crashes: int
    max_memory: int | None
    writable: bool


def make_limits(
    kind: str,
    *,
    timeout: float | None = None,
    retries: int = 0,
    backoff: float | Sequence[float] | Backoff | None = None,
    retry_on: type[BaseException] | Sequence[type[BaseException]] = (Exception,),
    max_crashes: int = DEFAULT_MAX_CRASHES,
    max_memory: int | str | None = None,
    writable: bool = False,
) -> Limits:
    """Check the limits and retries of a handler of this kind; for each see `subscribe`.

    Raises:
        ValueError: one makes no sense; the sentence says what would. Its cause is what a function
            for `backoff` raised, if it did.
    """
    if timeout is not None and not (is_real(timeout, 0, _LONGEST_TIMEOUT) and timeout > 0):
        raise ValueError(
            f"timeout must be a number of seconds above 0, {_LONGEST_TIMEOUT} (30 days) at most, "
            f"or None for no limit, not {shown(timeout)}"
        )
    for option, value in (("retries", retries), ("max_crashes", max_crashes)):
        if not is_whole(value, 0, _MOST_RETRIES):
            raise ValueError(
                f"{option} must be a whole number from 0 to {_MOST_RETRIES}, not {shown(value)}"
            )
    if kind != "cpu" and max_crashes != DEFAULT_MAX_CRASHES:
        raise ValueError(
            'max_crashes is for kind="cpu" only: an io handler runs in the process of the script, '
            'and a crash would end that; make it kind="cpu", or leave max_crashes out'
        )
    if writable is not True and writable is not False:
        raise ValueError(f"writable must be True or False, not {shown(writable)}")
    if kind != "cpu" and writable:
        raise ValueError(
            'writable is for kind="cpu" only: an io handler gets the very object that was '
            "published; leave it out, and copy what you change"
        )
    return Limits(
        timeout=None if timeout is None else float(timeout),
        retries=retries,
        backoff=make_backoff(backoff, retries),
        retry_on=_error_classes(retry_on),
        max_crashes=max_crashes,
        max_memory=None if max_memory is None else _memory_limit(kind, max_memory),
        writable=writable,
    )


def _error_classes(retry_on: object) -> tuple[type[BaseException], ...]:
    given = tuple(retry_on) if isinstance(retry_on, Sequence) else (retry_on,)
    classes = tuple(
        each for each in given if isinstance(each, type) and issubclass(each, BaseException)
    )
    if not given or len(classes) < len(given):
        raise ValueError(
            f"retry_on must be an exception class or a tuple of such, for instance "
            f"(OSError, HandlerTimeout), not {shown(retry_on)}; to retry nothing, leave out retries"
        )
    return classes


def _memory_limit(kind: str, max_memory: int | str) -> int:
    if kind != "cpu":
        raise ValueError(
            'max_memory is for kind="cpu" only: io handlers share the process of the script, which '
            'a limit would have to kill; make it kind="cpu", or leave max_memory out'
        )
    try:
        return parse_limit(max_memory)
    except ValueError as error:
        raise ValueError(f"max_memory: {error}") from None
