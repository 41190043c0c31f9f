# SPDX-License-Identifier: MIT
"""Retries: whether another attempt follows a failed one, and how long it waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias, TypedDict

from procbus.core.errors import (
    CircuitOpen,
    HandlerExited,
    HandlerTimeout,
    MemoryLimitExceeded,
    SerializationError,
    WorkerDied,
)
from procbus.core.introspection import accepts, is_async, name_of
from procbus.core.log import log
from procbus.core.options import as_given, option, whole
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.user_objects import cause_of, full_name, is_a, is_any
from procbus.core.validation import is_real, shown

Backoff: TypeAlias = Callable[[int, Outcome], float]
"""Seconds to wait, by the number of the attempt that has just failed, from 1, and its outcome."""

#: Maximum of a wait, in seconds: a day.
_LONGEST = 86_400
#: Maximum of attempts for which a backoff function is tried when it is subscribed.
_MOST_TRIED = 100

# Names of the handlers whose backoff has failed; each failure is logged once. `setdefault` is one C
# call, so of several threads exactly one comes first, without a lock.
_failed: dict[str, object] = {}


def exponential(attempt: int, _outcome: Outcome) -> float:
    """Wait a random time up to a bound: 0.5 s, doubled at each attempt, 60 s at most. The default.

    The whole wait is random ("full jitter"), so that deliveries which failed together, as when a
    server went down, do not all come back together. See the AWS architecture blog, "Exponential
    backoff and jitter".
    """
    from random import uniform  # only now: workers import this module and never wait

    # The exponent is bounded, because a power for the thousandth attempt is too large for a float.
    return uniform(0.0, min(60.0, 0.5 * 2.0 ** min(attempt - 1, 7)))  # noqa: S311 - no secret


def make_backoff(value: float | Sequence[float] | Backoff | None, retries: int) -> Backoff:
    """Make a backoff function from the value that a user gives.

    Args:
        value: seconds to wait, always; a sequence of seconds, one for each retry, of which the
            last is repeated; a function of (attempt, outcome) that returns seconds, which is
            tried at once; None for `exponential`.
        retries: how many attempts may follow the first: a function is tried for each, 100 at most.

    Raises:
        ValueError: it is none of these; the message says how to mend it. If the function raised,
            its exception is the cause.
    """
    if value is None:
        return exponential
    if callable(value):
        _try(value, retries)
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        if not len(value):
            raise ValueError("backoff is an empty sequence; give the wait before each retry")
        return _waits([_seconds(each, f"backoff[{index}]") for index, each in enumerate(value)])
    if isinstance(value, Real):
        return _waits([_seconds(value, "backoff")])
    raise ValueError(
        f"backoff must be a number of seconds, a sequence of such, or a function of "
        f"(attempt, outcome) that returns one, not {shown(value)}"
    )


def wait_of(handler_name: str, backoff: Backoff, attempt: int, outcome: Outcome) -> float:
    """Ask a backoff how long to wait. Never raises; may be called from any thread.

    If the function raises, or returns no valid wait, that is logged once for its handler, and
    `exponential` is used instead. So no delivery is lost.

    Args:
        handler_name: name of the handler.
        backoff: the handler's backoff.
        attempt: number of the attempt that has just failed, from 1.
        outcome: how that attempt failed.

    Returns:
        Seconds, from 0 to a day.
    """
    try:
        return _seconds(backoff(attempt, outcome), "its answer")
    except BaseException as error:  # noqa: BLE001 - the user's code; even its exit loses nothing
        me = object()
        if _failed.setdefault(handler_name, me) is me:
            log.error(
                "the backoff function of handler %s failed for attempt %d, which %s; whenever it "
                "fails, the default of backoff= is used instead (logged once)",
                handler_name,
                attempt,
                outcome.kind.value,
                exc_info=error,
            )
        return exponential(attempt, outcome)


def _waits(waits: Sequence[float]) -> Backoff:
    """Wait the given seconds before each retry; the last one is repeated."""
    return lambda attempt, _outcome: waits[min(attempt, len(waits)) - 1]


def _seconds(value: object, what: str) -> float:
    if is_real(value, 0, _LONGEST):
        return float(value)
    raise ValueError(
        f"{what} must be a number of seconds from 0 to {_LONGEST} (a day), not {shown(value)}"
    )


def _try(function: Backoff, retries: int) -> None:
    """Call a user's function the way it will be called later, so that its faults show now."""
    name = name_of(function)
    if is_async(function):
        raise ValueError(f"backoff {name} is async, but its answer is needed at once; use def")
    if not accepts(function, 2):
        raise ValueError(
            f"backoff {name} must take two arguments: the number of the attempt that failed, "
            f"and its outcome"
        )
    for attempt in range(1, min(retries or 1, _MOST_TRIED) + 1):
        for outcome in _samples():
            tried = f"backoff {name}, tried with attempt {attempt} and an outcome {outcome.kind},"
            try:
                seconds = function(attempt, outcome)
            except Exception as error:
                raise ValueError(
                    f"{tried} raised {type(error).__name__}: {error}; it has to work for every "
                    f"kind of failure (look at outcome.kind)"
                ) from error
            _seconds(seconds, f"{tried} gave no wait: it")


def _samples() -> Iterator[Outcome]:
    """One outcome of each kind that another attempt may follow."""
    text = "a sample, to try the backoff with"
    for kind, error in (
        (OutcomeKind.RAISED, RuntimeError(text)),
        (OutcomeKind.TIMED_OUT, HandlerTimeout(text)),
        (OutcomeKind.WORKER_DIED, WorkerDied(text)),
        (OutcomeKind.OVER_MEMORY, MemoryLimitExceeded(text)),
    ):
        yield Outcome(kind, error=error, started_at=1.0, ended_at=2.0, worker_pid=1)


# Whether a delivery that failed is tried again: a pure function of the policy and outcomes.

_MOST_RETRIES = 1_000


class RetryOptions(TypedDict, total=False):
    """The options that make a `RetryPolicy`, as a user writes them."""

    retries: int
    backoff: float | Sequence[float] | Backoff | None
    retry_on: type[BaseException] | Sequence[type[BaseException]]
    max_crashes: int


def _error_classes(name: str, value: object) -> tuple[type[BaseException], ...]:
    given = tuple(value) if isinstance(value, Sequence) else (value,)
    classes = tuple(
        each for each in given if isinstance(each, type) and issubclass(each, BaseException)
    )
    if not given or len(classes) < len(given):
        raise ValueError(
            f"{name} must be an exception class or a tuple of such, for instance "
            f"(OSError, HandlerTimeout), not {shown(value)}; to retry nothing, leave out retries"
        )
    return classes


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The failures of a handler after which another attempt is made, and the wait before it.

    Attributes:
        retries: maximum number of attempts after the first.
        backoff: a function of the failed attempt's number and outcome: seconds until the next
            attempt.
        retry_on: the errors after which another attempt is made.
        max_crashes: how often a delivery may kill its worker and still be tried again.

    Example:
        ```python
        from procbus import EventBus

        bus = EventBus(handlers=[])
        bus.subscribe("word", len, retries=3, retry_on=OSError)
        assert bus.handlers("word")[0].retry.retry_on == (OSError,)
        ```
    """

    retries: int = option(0, whole(0, _MOST_RETRIES))
    backoff: Backoff = option(None, as_given)
    retry_on: tuple[type[BaseException], ...] = option((Exception,), _error_classes)
    max_crashes: int = option(
        1,
        whole(0, _MOST_RETRIES),
        only_cpu="an io handler runs in the process of the script, and a crash would end that; "
        'make it kind="cpu", or leave max_crashes out',
        no_threads="a crash of a thread is a crash of the script",
    )

    def __post_init__(self) -> None:
        """Check the backoff, which takes the number of retries."""
        made = make_backoff(self.backoff, self.retries)
        object.__setattr__(self, "backoff", made)  # as the class is frozen


_CRASHES = (OutcomeKind.WORKER_DIED, OutcomeKind.OVER_MEMORY)


def may_retry(policy: RetryPolicy, earlier: Sequence[Outcome], outcome: Outcome) -> bool:
    """Whether another attempt follows a failed one.

    Args:
        policy: of the handler that failed.
        earlier: the outcomes of the attempts before it.
        outcome: the outcome of the failed attempt.
    """
    if len(earlier) >= policy.retries or outcome.kind is OutcomeKind.CANCELLED:
        return False
    error = outcome.error
    if error is None or not _is_one_of(error, policy.retry_on):
        return False
    # A closing bus gave this delivery up. Another attempt would only keep the bus from closing.
    if outcome.kind is OutcomeKind.WORKER_DIED and is_a(error, CircuitOpen):
        return False
    return not quarantined(policy, earlier, outcome)


def _is_one_of(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether an error is of these classes, as `except` would decide it in the handler's process.

    It runs under the settlement's lock: no code of the user's may run here.
    """
    if is_a(error, SerializationError):
        # An event that cannot travel to a worker cannot travel the next time either. An exception
        # that could not travel back was raised in the handler all the same, so its names count.
        return any(full_name(kind) in error.raised for kind in kinds)
    if is_a(error, HandlerExited):
        raised = cause_of(error)
        return raised is not None and is_any(raised, kinds)
    return is_any(error, kinds)


def quarantined(policy: RetryPolicy, earlier: Sequence[Outcome], outcome: Outcome) -> bool:
    """Whether a delivery killed its workers more often than `max_crashes` lets it.

    Args:
        policy: of the handler that failed.
        earlier: the outcomes of the attempts before the last.
        outcome: the outcome of the last attempt.
    """
    if not _crashed(outcome):
        return False
    crashes = 1 + sum(_crashed(each) for each in earlier)
    return crashes > policy.max_crashes


def _crashed(outcome: Outcome) -> bool:
    """Whether the attempt killed its worker; false if no worker could be started."""
    return outcome.kind in _CRASHES and outcome.started_at > 0
