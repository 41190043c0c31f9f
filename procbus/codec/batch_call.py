# SPDX-License-Identifier: MIT
"""The function that a worker runs for a batch handler: it calls the handler with a list of events.

The function also turns the handler's answer into one result or error for each event.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, Sized
from contextlib import suppress
from typing import Any

from procbus.codec import exception_parts
from procbus.core.context import running_context
from procbus.core.errors import BatchFailed, ProcbusError, SerializationError, WorkerTraceback
from procbus.core.text import shown_events
from procbus.core.together import Together
from procbus.core.unfinished import unfinished
from procbus.core.user_objects import is_a, named, set_cause, text_of, traceback_of

#: Types that have a length and can be gone through, and are no list of results.
_NO_RESULTS = (str, bytes, bytearray, memoryview, Mapping, Set)


class InPart:
    """The answer of a batch handler that failed for some of its events.

    Args:
        values: the result of each event.
        errors: the error of each event that failed, by its index.
    """

    def __init__(self, values: Sequence[Any] | None, errors: Mapping[int, BaseException]) -> None:
        self.values = values
        self.errors = errors

    def __reduce__(self) -> Any:
        """Travel with the errors and their tracebacks, without the parts that cannot travel."""
        errors = [
            (index, _travelling(error), _stack_of(error)) for index, error in self.errors.items()
        ]
        return _arrived, (self.values, errors)


def _stack_of(error: BaseException) -> str:
    """The traceback of an error; "" for an error of procbus itself, which nothing has raised."""
    made_here = type(error) is SerializationError and error.__traceback__ is None
    return "" if made_here else text_of(error, traceback_of(error))


def _arrived(
    values: Sequence[Any] | None, errors: Sequence[tuple[int, BaseException, str]]
) -> InPart:
    for _, error, text in errors:
        if text:
            set_cause(error, WorkerTraceback(text))
    return InPart(values, {index: error for index, error, _ in errors})


class _Reduced:
    """An exception that travels without the parts that cannot."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return exception_parts.reduced(self._error, _arrives)


def _travelling(error: BaseException) -> object:
    """Return an object that arrives as the exception, or as an exception that describes it."""
    for each in (error, _Reduced(error)):
        if _arrives(each):
            return each
    return SerializationError(
        f"a batch handler failed an event with an exception that cannot travel back from its "
        f"worker: {named(error)}"
    )


def _arrives(obj: object) -> bool:
    """Whether an object survives pickling, which may run the user's code."""
    from procbus.codec.encoder import decode, encode_alone  # only now: it imports cloudpickle

    try:
        decode(encode_alone(obj))
    except BaseException:  # noqa: BLE001 - the user's code: failing is the answer
        return False
    return True


class CallForMany:
    """A function that a worker calls once for several events, and that answers for each."""

    #: Name of the handler.
    name: str

    def in_part(self, answer: Any, given: Any) -> InPart | None:
        """Fail the events whose results cannot travel, so that the results of the others can.

        Args:
            answer: the answer of this function, which could not be encoded.
            given: its argument.

        Returns:
            None if each result can travel alone.
        """
        raise NotImplementedError

    def _faults(self, values: Sequence[Any]) -> Iterator[tuple[int, BaseException, str]]:
        """Yield the index of each value that cannot travel, the error, and the path to it."""
        from procbus.codec.encoder import encode_alone  # only now: it imports cloudpickle
        from procbus.codec.fault_path import path_of_fault

        for index, value in enumerate(values):
            try:
                encode_alone(value)
            except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
                yield index, error, path_of_fault(value, "result")

    def _unsent(self, event: str, error: BaseException, path: str) -> SerializationError:
        return SerializationError(
            f"the result of {self.name} for {event} cannot travel back from its worker"
            f"{f' because of {path}' if path else ''}: {named(error)}. Return plain data, or use "
            'kind="io"',
            path,
        )


class BatchCall(CallForMany):
    """Calls a batch handler, and checks its answer.

    Args:
        function: the handler's function.
        name: the handler's name.
        is_async: whether calling the function gives a coroutine.
    """

    def __init__(self, function: Callable[..., Any], name: str, is_async: bool) -> None:
        self.function = function
        self.name = name
        self.is_async = is_async

    def __call__(self, together: Together) -> Any:
        """Call the handler; return a list of results, None for none at all, or an `InPart`."""
        ids, events = together
        context = running_context()
        if context is not None:
            context.event_ids = tuple(ids)
        if self.is_async:
            return self._await(together)
        if not events:  # they were taken back
            return None
        try:
            answer = self.function(events)
        except BatchFailed as error:
            return self._in_part(error, ids)
        return self._checked(answer, ids)

    async def _await(self, together: Together) -> Any:
        ids, events = together
        if not events:
            return None
        try:
            answer = await self.function(events)
        except BatchFailed as error:
            return self._in_part(error, ids)
        return self._checked(answer, ids)

    def in_part(self, answer: Any, given: Together) -> InPart | None:
        """Fail the events whose results cannot travel, see `CallForMany.in_part`."""
        ids, _ = given
        errors: dict[int, BaseException] = {}
        values = answer
        if isinstance(answer, InPart):
            errors.update(answer.errors)
            values = answer.values
        faults = [
            (index, self._unsent(f"event #{ids[index]}", error, path))
            for index, error, path in self._faults(values or ())
        ]
        if not faults:
            return None
        errors.update(faults)
        return InPart(_without(values, errors), errors)

    def _checked(self, answer: Any, ids: Sequence[int]) -> list[Any] | None:
        """Return the results as a list.

        Raises:
            ProcbusError: there is not one result for each event.
        """
        if answer is None:
            return None
        if (fault := unfinished(self.name, answer)) is not None:
            raise fault
        count = len(ids)
        length = None
        if isinstance(answer, Sized) and not isinstance(answer, _NO_RESULTS):
            with suppress(TypeError):  # some arrays are a single number, and refuse
                length = len(answer)
        if length == count:
            results: Any = answer
            return results if type(results) is list else list(results)
        given = f"a {type(answer).__qualname__}" + ("" if length is None else f" of {length}")
        raise ProcbusError(
            f"{self.name} was called with {shown_events(ids)} and returned {given}: a batch "
            f"handler returns None, or a list with one result for each of its events, here {count}"
        )

    def _in_part(self, failed: BatchFailed, ids: Sequence[int]) -> InPart:
        """Sort out the errors of a batch that failed in part.

        Raises:
            ProcbusError: the errors do not belong to the events of the batch.
        """
        errors: dict[int, BaseException] = {}
        for key, error in failed.errors.items():
            try:
                index = operator.index(key)
            except TypeError:
                index = -1
            if not 0 <= index < len(ids) or not is_a(error, BaseException):
                raise ProcbusError(
                    f"{self.name} was called with {shown_events(ids)} and raised BatchFailed with "
                    f"{key!r}: {named(error) if is_a(error, BaseException) else repr(error)}. Its "
                    f"keys are indices of the list of events, here 0 to {len(ids) - 1}, and its "
                    "values are exceptions"
                ) from failed
            errors[index] = error
        values = None if failed.results is None else self._checked(failed.results, ids)
        return InPart(_without(values, errors), errors)


def _without(values: Sequence[Any] | None, errors: Mapping[int, object]) -> list[Any] | None:
    """Copy results, without the ones of events that failed: these need not be able to travel."""
    if values is None:
        return None
    return [None if index in errors else value for index, value in enumerate(values)]
