# SPDX-License-Identifier: MIT
"""An event that your code waits for."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from procbus.core.context import NOTHING
from procbus.core.errors import BusClosed, ExpectTimeout, OptionError
from procbus.core.handler import Handler, make_handler
from procbus.core.topic import Topic, shown_topics
from procbus.core.validation import is_real, shown
from procbus.dispatch.choosing import checked_where
from procbus.jobs.waiting import Waiters

E = TypeVar("E")

#: Maximum of a timeout, in seconds; because longer waits do not fit the types of the system.
LONGEST_WAIT_S = 1e8

_numbers = itertools.count(1)


class _Catch:
    """Catches the first wanted event. Routing calls it as a predicate, and it takes no event."""

    def __init__(self, where: Callable[[Any], object] | None) -> None:
        self._where = where
        self.waiters = Waiters()
        self.event: Any = NOTHING
        self.error: BaseException | None = None

    def __call__(self, event: Any) -> bool:
        if not self.caught():
            try:
                if self._where is not None and not self._where(event):
                    return False
            except Exception as error:  # noqa: BLE001 - the user's code: the waiter gets the error
                self.error = error
            else:
                self.event = event
            self.waiters.wake()
        return False

    def caught(self) -> bool:
        """Whether an event came, or `where` raised."""
        return self.event is not NOTHING or self.error is not None


class Expected(Generic[E]):
    """An event that you wait for, by `result()`, or `await`: see `EventBus.expect`. Thread-safe.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("text", str.upper)
            with bus.expect("text") as expected:
                bus.publish("text", "hello")
            assert expected.result(timeout=10) == "hello"
        ```
    """

    def __init__(
        self,
        hold: Callable[[Handler], AbstractContextManager[None]],
        topics: tuple[Topic, ...],
        where: Callable[[E], object] | None,
        timeout: float | None,
        closed: Callable[[], bool],
    ) -> None:
        self._held = contextlib.ExitStack()
        if not topics:
            raise OptionError("expect() waits for a topic: give it a class or a dotted string")
        checked_where(where)
        if timeout is not None and not is_real(timeout, 0, LONGEST_WAIT_S):
            raise OptionError(f"timeout must be a number of seconds, not {shown(timeout)}")
        self._topics = topics
        self._timeout = timeout
        self._catch = _Catch(where)
        self._closed = closed
        name = f"expect-{next(_numbers)}"
        self._held.enter_context(hold(make_handler(_never, topics, name=name, where=self._catch)))

    @property
    def done(self) -> bool:
        """Whether the event came."""
        return self._catch.caught()

    def result(self, timeout: float | None = None) -> E:
        """Wait for the event, and return it.

        Args:
            timeout: maximum wait in seconds; None for the `timeout` of `expect`.

        Raises:
            ExpectTimeout: the event did not come in time.
            BusClosed: the bus was closed, and the event did not come.
            Exception: the function `where` raised this exception.
        """
        most = self._timeout if timeout is None else timeout
        self._catch.waiters.wait(self._is_over, most, "await what expect() returns")
        return self._event(most)

    def __await__(self) -> Generator[Any, None, E]:
        """Wait for the event in an event loop."""
        yield from self._catch.waiters.until(self._is_over, self._timeout).__await__()
        return self._event(self._timeout)

    def _is_over(self) -> bool:
        return self._catch.caught() or self._closed()

    def _event(self, waited_s: float | None) -> E:
        catch = self._catch
        if not catch.caught():
            if self._closed():
                raise BusClosed(
                    f"the bus was closed before an event of {shown_topics(self._topics)} that is "
                    "wanted was published"
                )
            raise ExpectTimeout(
                f"no event of {shown_topics(self._topics)} that is wanted was published within "
                f"{waited_s} s"
            )
        self.stop()
        if catch.error is not None:
            raise catch.error
        event: E = catch.event
        return event

    def stop(self) -> None:
        """Stop waiting for the event. An event that came before is kept. Idempotent."""
        self._held.close()

    def __enter__(self) -> Self:
        """Expect the event from now on."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the event, unless an exception left the block."""
        try:
            if error is None:
                self.result()
        finally:
            self.stop()

    async def __aenter__(self) -> Self:
        """Expect the event from now on."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the event as a `with` block does, without blocking the event loop."""
        try:
            if error is None:
                await self
        finally:
            self.stop()

    def __del__(self) -> None:
        """Stop, because your code has dropped it."""
        with contextlib.suppress(Exception):
            self._held.close()

    def __repr__(self) -> str:
        """Say whether the event came."""
        state = "came" if self.done else "has not come"
        return f"<Expected event of {shown_topics(self._topics)}: {state}>"


def _never(event: object) -> None:
    """Stand for the handler of an expectation, which takes no event."""
