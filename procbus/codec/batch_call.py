# SPDX-License-Identifier: MIT
"""The function that a worker runs for a batch handler: it calls the handler with a list of events.

The function also turns the handler's answer into one result or error for each event.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence, Set, Sized
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
            (index, _travelling(error), text_of(error, traceback_of(error)))
            for index, error in self.errors.items()
        ]
        return _arrived, (self.values, errors)


def _arrived(
    values: Sequence[Any] | None, errors: Sequence[tuple[int, BaseException, str]]
) -> InPart:
    for _, error, text in errors:
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


class BatchCall:
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
        if isinstance(answer, _NO_RESULTS) or not isinstance(answer, Sized):
            given = f"a {type(answer).__qualname__}"
        elif len(answer) != count:
            given = f"a {type(answer).__qualname__} of {len(answer)}"
        else:
            results: Any = answer
            return results if type(results) is list else list(results)
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
        return InPart(values, errors)
