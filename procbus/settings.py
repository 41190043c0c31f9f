# SPDX-License-Identifier: MIT
"""The options of a bus, declared and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from procbus.core.errors import (
    OptionError,
    ProcbusError,
    SerializationError,
    SubscriptionError,
)
from procbus.core.gil import gil_is_on
from procbus.core.handler import (
    OPTIONS_OF_A_HANDLER,
    CpuPlace,
    Handler,
    need_of_process,
    unkept_by_threads,
)
from procbus.core.introspection import accepts, is_async, is_generator, name_of
from procbus.core.options import (
    Check,
    checked,
    memory_limit,
    one_of,
    option,
    options_of,
    seconds_up_to,
    whole,
)
from procbus.core.user_objects import named
from procbus.core.validation import (
    did_you_mean,
    format_size,
    parse_keep,
    parse_size,
    shown,
)

if TYPE_CHECKING:
    from procbus.core.dead_letter import DeadLetter
    from procbus.core.handler import Kind
    from procbus.core.validation import Keep
    from procbus.dispatch.admission import OnFull
    from procbus.journal.codec import CodecName
    from procbus.journal.journal import Durability
    from procbus.pool.dask.pool import DaskPool
    from procbus.pool.memory.events import OnOversize
    from procbus.system.sigterm import OnSigterm

#: Maximum of workers of one kind; because a larger number is a mistake.
MOST_WORKERS = 10_000
#: Maximum of `grace`, in seconds: a day; because the sender of SIGTERM sends SIGKILL long before.
_LONGEST_GRACE_S = 86_400
#: Maximum niceness of a process.
_NICEST = 19
#: Minimum of useful shared memory, and of a buffer worth sharing, in bytes.
_LEAST_SHARED = 1 << 20
_LEAST_THRESHOLD = 1 << 12


class LocalOptions(TypedDict, total=False):
    """The options of a bus that has no workers, such as `InlineBus`, as a user writes them."""

    max_pending: int
    on_full: OnFull
    worker_init: Callable[[], object] | None
    on_failure: Callable[[DeadLetter], object] | None
    carry: Iterable[ContextVar[Any]]


class BusOptions(LocalOptions, total=False):
    """The options of a bus, as a user writes them; see `EventBus` for their meaning.

    Use this class to annotate the keyword arguments of a function that passes them to `EventBus`.

    Example:
        ```python
        from typing import Unpack

        from procbus import BusOptions, EventBus


        def night_bus(**options: Unpack[BusOptions]) -> EventBus:
            options.setdefault("worker_nice", 10)
            return EventBus([], **options)


        with night_bus(cpu_workers=2) as bus:
            print(bus)
        ```
    """

    cpu: Literal["processes", "threads", "auto"] | DaskPool | None
    cpu_workers: int | None
    io_workers: int | None
    max_events_per_worker: int | None
    worker_max_memory: int | str | None
    worker_nice: int
    worker_env: Callable[[int], Mapping[str, str]] | None
    shared_memory_limit: int | str | None
    shared_memory_threshold: int | str
    on_oversize: OnOversize
    journal: str | PathLike[str] | None
    durability: Durability
    keep: Keep
    keep_results: bool
    journal_codec: CodecName
    on_sigterm: OnSigterm
    grace: float
    live: bool


# Checks of single options.


def _pool(name: str, value: Any) -> Any:
    if value is None:
        return "processes"
    if value in ("processes", "threads", "auto") or hasattr(value, "open"):
        return value
    if value == "interpreters":
        raise OptionError(f"{name}={value!r} is not offered: {_NO_INTERPRETERS}")
    raise OptionError(
        f'{name} must be "processes", "threads", "auto" or a DaskPool, not {shown(value)}'
        f"{did_you_mean(value, ('processes', 'threads', 'auto'))}"
    )


#: The reason for which interpreters are refused.
_NO_INTERPRETERS = (
    "numpy, psutil and msgspec do not load in a second interpreter, a handler there cannot be "
    'ended, and a call costs 600 us. Use "processes", or "threads" with a Python that has no GIL'
)


def _path(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not (isinstance(value, str | PathLike) and os.fspath(value)):
        raise OptionError(f"{name} must be the path of a file, not {shown(value)}")
    return os.fspath(value)


def _keep(name: str, value: Any) -> float:
    try:
        return parse_keep(value)
    except ValueError as error:
        raise OptionError(f"{name} {error}") from None


def _shared(least: int, *, or_none: bool = False) -> Check:
    def check(name: str, value: Any) -> int | None:
        if or_none and value is None:
            return None
        try:
            size = parse_size(value)
        except ValueError as error:
            raise OptionError(f"{name}: {error}") from None
        if size < least and not (or_none and size == 0):
            nothing = ", or 0 for none" if or_none else ""
            raise OptionError(
                f"{name} must be {format_size(least)} at least{nothing}, not {shown(value)}"
            )
        return size

    return check


def _worker_init(name: str, value: Any) -> Any:
    if value is not None:
        _check_function(name, value, ())
    return value


def _on_failure(name: str, value: Any) -> Any:
    if value is not None:
        _check_function(name, value, ("the dead letter",))
    return value


def _worker_env(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        raise OptionError(
            f"{name} must be a function of the worker's number, which returns a dict; for the same "
            f"variables in each worker write {name}=lambda number: {shown(value)}"
        )
    if value is not None:
        _check_function(name, value, ("the number of the worker",))
    return value


def _carry(name: str, value: Any) -> tuple[ContextVar[Any], ...]:
    """Check that these are context variables, and that they can be sent to workers."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise OptionError(
            f"{name} must be a list of ContextVars, such as [var], not {shown(value)}"
        )
    given = list(value)
    for each in given:
        if not isinstance(each, ContextVar):
            raise OptionError(
                f"{name} takes ContextVars alone, not {shown(each)}; keep the value in a "
                "contextvars.ContextVar, and set it before you publish"
            )
    variables = tuple(dict.fromkeys(given))
    if variables:
        # Imported here because it needs cloudpickle, and a bus may do without workers.
        from procbus.codec.fault_path import check_variables

        check_variables(variables)
    return variables


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
    from procbus.core.frames import useful_cause

    try:
        encode_definition(worker_init)
    except Exception as error:  # noqa: BLE001 - the user's code
        name = name_of(worker_init)
        path = path_of_fault(worker_init, name)
        raise SerializationError(
            f"worker_init={name} cannot travel to a worker process"
            f"{f' because of {path}' if path else ''}: {type(error).__name__}: {error}. "
            f"Make that object inside the function",
            path,
        ) from useful_cause(error)


#: Options of the bus that only worker processes keep.
_OF_PROCESSES = ("max_events_per_worker", "worker_max_memory", "worker_nice", "worker_env")

#: The reasons why the bus chose processes or threads for a handler, in words for people.
NO_GIL = "threads: this Python has no GIL, and it asks for nothing that only a process keeps"
GIL_ON = "processes: this Python has a GIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a bus, checked; see `EventBus` for their meaning."""

    #: The place of cpu handlers: processes or threads of this machine, or a Dask cluster.
    cpu: Literal["processes", "threads", "auto"] | DaskPool = option("processes", _pool)
    cpu_workers: int | None = option(None, whole(1, MOST_WORKERS, or_none=True))
    io_workers: int | None = option(None, whole(1, MOST_WORKERS, or_none=True))
    max_pending: int = option(10_000, whole(1))
    on_full: OnFull = option("block", one_of("block", "raise"))
    worker_init: Callable[[], object] | None = option(None, _worker_init)
    max_events_per_worker: int | None = option(None, whole(1, or_none=True))
    #: In bytes.
    worker_max_memory: int | None = option(None, memory_limit)
    worker_nice: int = option(0, whole(0, _NICEST))
    worker_env: Callable[[int], Mapping[str, str]] | None = option(None, _worker_env)
    on_failure: Callable[[DeadLetter], object] | None = option(None, _on_failure)
    #: In bytes; None for a share of the free memory.
    shared_memory_limit: int | None = option(None, _shared(_LEAST_SHARED, or_none=True))
    shared_memory_threshold: int = option(32 * 1024, _shared(_LEAST_THRESHOLD))
    on_oversize: OnOversize = option("pipe", one_of("pipe", "fail"))
    #: Path of the journal; None for no journal.
    journal: str | None = option(None, _path)
    durability: Durability = option("process", one_of("process", "power"))
    #: Time for which finished deliveries are kept, in seconds; 0 for not at all.
    keep: float = option("unfinished", _keep)
    keep_results: bool = option(False, one_of(True, False))
    journal_codec: CodecName = option("pickle", one_of("pickle", "json"))
    on_sigterm: OnSigterm = option(None, one_of("finish", "put_away", None))
    #: Maximum time for pending deliveries after SIGTERM, in seconds.
    grace: float = option(25.0, seconds_up_to(_LONGEST_GRACE_S))
    carry: tuple[ContextVar[Any], ...] = option((), _carry)
    live: bool = option(False, one_of(True, False))

    def __post_init__(self) -> None:
        """Refuse options that exclude each other."""
        if self.worker_init is not None and self.cpu != "threads":
            _check_travels(self.worker_init)
        if self.cpu == "threads":
            for name in _OF_PROCESSES:
                if getattr(self, name):
                    raise OptionError(
                        f'{name} is for worker processes: leave it out with cpu="threads", whose '
                        "workers share the process of the script"
                    )
        elif self.cpu not in ("processes", "auto"):
            for name in ("worker_max_memory", "worker_nice", "worker_env"):
                if getattr(self, name):
                    raise OptionError(
                        f"{name} is for workers of this machine: leave it out with "
                        "cpu=DaskPool(...)"
                    )

    def place_of(self, handler: Handler) -> CpuPlace | None:
        """Choose between processes and threads for a handler now.

        Returns:
            None if there is nothing to choose: the handler is no cpu handler, or `cpu` is not
            "auto".
        """
        if self.cpu != "auto" or handler.kind != "cpu":
            return None
        if gil_is_on():
            return CpuPlace(False, GIL_ON)
        if handler.rate is not None:
            return CpuPlace(False, "processes: rate= counts the runs in one place")
        needs = need_of_process(handler) or next(
            (name for name in _OF_PROCESSES if getattr(self, name)), ""
        )
        return (
            CpuPlace(False, f"processes: {needs}= needs them") if needs else CpuPlace(True, NO_GIL)
        )

    def check_handler(self, handler: Handler) -> None:
        """Check that the workers of this bus can keep all promises of a handler.

        Raises:
            SubscriptionError: the workers cannot; the message says why, and which workers can.
        """
        if self.cpu == "threads" and handler.kind == "cpu":
            given = {name: getattr(handler, name) for name in OPTIONS_OF_A_HANDLER}
            for name, reason in unkept_by_threads(given):
                raise SubscriptionError(f"handler {handler.name}: {_unkept(name, reason)}")
        if handler.needs and self.cpu != "threads" and (handler.kind == "cpu" or handler.auto):
            from procbus.core.resources import all_needs, unshared  # loaded with the handler

            for each in all_needs(handler.needs):
                if each.scope == "bus":
                    raise SubscriptionError(f"handler {handler.name}: {unshared(each)}")

    def environment_of(self, number: int) -> Mapping[str, str] | None:
        """The environment variables that one worker process alone gets.

        Args:
            number: number of the worker.

        Raises:
            ProcbusError: the user's function failed, or returned no dict of strings, or a string
                that the operating system does not take.
        """
        if self.worker_env is None:
            return None
        try:
            found: Any = self.worker_env(number)
        except Exception as error:
            raise ProcbusError(f"worker_env failed for worker {number}: {named(error)}") from error
        if not isinstance(found, Mapping) or not all(
            isinstance(each, str) for pair in found.items() for each in pair
        ):
            raise ProcbusError(
                f"worker_env must return a dict of strings, such as "
                f'{{"CUDA_VISIBLE_DEVICES": str(number)}}, not {shown(found)}'
            )
        for name, value in found.items():
            if not name or "=" in name or "\0" in name + value:
                raise ProcbusError(
                    f"worker_env for worker {number}: {name!r}: {value!r} cannot be an environment "
                    "variable, because its name is empty, has a =, or one of the two has a NUL"
                )
        return dict(found)

    def check_calls(self, kind: Kind, options: Mapping[str, Any]) -> None:
        """Check that the workers of this bus can keep the options of an executor's calls.

        Raises:
            OptionError: the workers cannot keep one of the options.
        """
        if self.cpu == "threads" and kind == "cpu":
            for name, reason in unkept_by_threads(options):
                raise OptionError(f"executor: {_unkept(name, reason)}")


def _unkept(name: str, reason: str) -> str:
    return (
        f'{name} needs a process, and this bus was made with cpu="threads": {reason}. Leave '
        f'{name} out, or use cpu="processes"'
    )


_KNOWN = ("handlers", *options_of(Settings))


def make_settings(given: Mapping[str, Any]) -> Settings:
    """Check the options of `EventBus`.

    Raises:
        OptionError: an option makes no sense, or does not exist; the message says how to mend it.
        SerializationError: `worker_init` holds something that cannot travel to a worker.
    """
    for name in given:
        if name not in _KNOWN:  # `grace` is an option of both
            if name in OPTIONS_OF_A_HANDLER:
                raise OptionError(
                    f"{name}= is an option of a handler, not of EventBus: @subscribe({name}=...)"
                )
            from procbus.core.foreign_names import meant_by  # only when something is wrong

            own, handlers = (meant_by(name, each) for each in (_KNOWN, OPTIONS_OF_A_HANDLER))
            if handlers and not own:
                raise OptionError(
                    f"EventBus has no option {name}=; the option of a handler {handlers}= is "
                    f"probably meant: @subscribe({handlers}=...)"
                )
            hint = did_you_mean(name, _KNOWN, "=") or "."
            raise OptionError(f"EventBus has no option {name}={hint} It has: {', '.join(_KNOWN)}")
    try:
        return Settings(**checked(Settings, given))
    except ValueError as error:
        raise OptionError(str(error)) from None
