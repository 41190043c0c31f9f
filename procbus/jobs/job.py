# SPDX-License-Identifier: MIT
"""A job: everything that a block of your script sets going on a bus."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from procbus.core.errors import JobFailed, OptionError, ProcbusError
from procbus.core.validation import is_whole, shown
from procbus.jobs import book as books
from procbus.jobs.state import JobState
from procbus.jobs.tree import drawn

if TYPE_CHECKING:
    from procbus.jobs.book import JobBook

R = TypeVar("R")


class Job:
    """All that a `with bus.job(...)` block publishes, and all that comes of it.

    The events that you publish in the block belong to the job. So do the events that their handlers
    publish, however deep. Leaving the block waits until all deliveries of these events are settled.
    Then the bus publishes `JobDone`. All methods may be called from any thread. See docs/jobs.md.

    Example:
        ```python
        from procbus import EventBus, current

        bus = EventBus(handlers=[])


        @bus.subscribe("text", kind="cpu")
        def split(text: str) -> None:
            for word in text.split():
                current().publish("word", word)


        @bus.subscribe("word")
        def count(word: str) -> int:
            return len(word)


        with bus:
            with bus.job("count") as job:
                bus.publish("text", "one two three")
            assert (job.succeeded, job.failed) == (4, 0)
            assert sum(job.results(count)) == 11
        ```
    """

    def __init__(
        self,
        book: JobBook,
        name: str,
        id: str | None,
        max_failed: int | None,
        keep_results: int,
        name_of: Callable[[Callable[..., Any]], str],
    ) -> None:
        if not name or not isinstance(name, str):
            raise OptionError(f"the name of a job must be a string with text, not {shown(name)}")
        if max_failed is not None and not is_whole(max_failed, 0):
            raise OptionError(
                f"max_failed must be a whole number from 0 up, or None, not {shown(max_failed)}"
            )
        if not is_whole(keep_results, 0):
            raise OptionError(
                f"keep_results must be a whole number from 0 up, not {shown(keep_results)}"
            )
        if id is not None and (not id or not isinstance(id, str)):
            raise OptionError(f"the id of a job must be a string with text, not {shown(id)}")
        for text in (name, id or ""):
            try:
                text.encode()
            except UnicodeEncodeError as error:  # half of a surrogate pair: no file would take it
                raise OptionError(f"{text!r} cannot name a job: {error}") from error
        self._book = book
        self._state = JobState(book, name, book.id_for(name, id), max_failed, keep_results)
        self._name_of = name_of
        self._begun = False
        self._before: Token[tuple[JobState, ...]] | None = None

    # The block.

    def __enter__(self) -> Self:
        """Begin: events that this block publishes belong to the job."""
        if self._begun:
            raise ProcbusError(
                f"the job {self.name!r} has had its block: make another with bus.job({self.name!r})"
            )
        self._begin()
        self._book.resume()
        return self

    def _begin(self) -> None:
        self._begun = True
        try:
            self._state = self._book.begin(self._state)
        except BaseException:
            self._begun = False
            raise
        self._before = books.inside.set((self._state, *books.inside.get()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait until all is settled; after an exception cancel deliveries that have not begun.

        Raises:
            JobFailed: more than `max_failed` deliveries failed.
        """
        self._leave(error)
        self._check()
        self._state.waiters.wait(self._ended, None, "use `async with bus.job(...)`", self._check)
        if error is None:
            self._raise_if_failed()

    async def __aenter__(self) -> Self:
        """Begin, as a `with` block does."""
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait without blocking the event loop."""
        self._leave(error)
        self._check()
        await self._state.waiters.until(self._ended, None)
        if error is None:
            self._raise_if_failed()

    def _leave(self, error: BaseException | None) -> None:
        try:
            if self._before is not None:
                books.inside.reset(self._before)
        except ValueError:  # the block was left in another context, as by a fixture of pytest
            books.inside.set(tuple(each for each in books.inside.get() if each is not self._state))
        if error is not None:
            why = books.LEFT.format(self.name)
            self._book.cancel(self._state, why, waiting_only=True, for_good=False)
        self._book.leave(self._state, cut_short=error is not None)

    def _ended(self) -> bool:
        return self._state.ended

    def _idle(self) -> bool:
        counts = self._state
        return counts.ended or (counts.idle and counts.in_block)

    def _raise_if_failed(self) -> None:
        counts = self._state
        if counts.too_many:
            error = JobFailed(
                f"the job {self.name!r} was cancelled, because {counts.failed_here} deliveries "
                f"failed and max_failed={counts.max_failed}: the first error is its cause, and "
                "bus.dead_letters has all"
            )
            raise error from counts.error

    # Waiting.

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all events of the job so far are settled, and all events that come of them.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", print)
                with bus.job("print") as job:
                    bus.publish("word", "hello")
                    assert job.wait(timeout=10)  # "hello" is printed now
            ```

        Args:
            timeout: maximum wait in seconds; None waits as long as it takes.

        Returns:
            Whether all is settled.

        Raises:
            JobFailed: more than `max_failed` deliveries failed.
            ProcbusError: called in a handler that belongs to the job, which would wait for itself.
        """
        self._check()
        settled = self._state.waiters.wait(self._idle, timeout, "await the job", self._check)
        if settled:
            self._raise_if_failed()
        return settled

    def __await__(self) -> Generator[Any, None, Self]:
        """Wait in an event loop, as `wait` does: `await job` gives the job itself."""
        self._check()
        yield from self._state.waiters.until(self._idle, None).__await__()
        self._raise_if_failed()
        return self

    def _check(self) -> None:
        if not self._begun:
            raise ProcbusError(
                f"the job {self.name!r} has no block yet: write `with bus.job({self.name!r}) as "
                "job:`, and publish in that block"
            )
        self._book.check_wait(self._state)

    @overload
    def results(self, handler: Callable[..., R]) -> Iterator[R]: ...

    @overload
    def results(self, handler: str) -> Iterator[Any]: ...

    def results(self, handler: Callable[..., Any] | str) -> Iterator[Any]:
        """Take the results of a handler's deliveries in the job, each once, as they come.

        The iterator ends once all events of the job so far are settled. A delivery that failed or
        was cancelled has no result. A result is kept until you take it. The job keeps at most
        `keep_results` results of each handler. With a journal you get the results of this run; for
        a result of an earlier run, ask the receipt of its event: see docs/journal.md.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", len)
                with bus.job("count") as job:
                    for word in ["one", "three"]:
                        bus.publish("word", word)
                    assert sorted(job.results(len)) == [3, 5]
            ```

        Args:
            handler: the function, or the name of the handler.

        Raises:
            NoSuchHandler: the function is not subscribed to this bus.
            ProcbusError: more than `keep_results` results came before you took them.
        """
        self._check()
        return self._results(handler if isinstance(handler, str) else self._name_of(handler))

    def _results(self, name: str) -> Iterator[Any]:
        while True:
            found, more = self._book.take_results(self._state, name)
            yield from found
            if name in self._state.dropped:
                most = self._state.keep_results
                raise ProcbusError(
                    f"the job {self.name!r} kept the first {most} results of {name} "
                    "that waited to be taken, and dropped the next: take them in the block, while "
                    "they come, or give bus.job(..., keep_results=) a larger number"
                )
            if not more:
                return
            self._state.waiters.wait(
                lambda: self._has_news(name), None, "take the results in a thread", self._check
            )

    def _has_news(self, name: str) -> bool:
        counts = self._state
        return counts.idle or name in counts.results or name in counts.dropped

    # Looking, and cancelling.

    def cancel(self) -> int:
        """Cancel the open deliveries of the job, and all deliveries that it gets from now on.

        See `Delivery.cancel`. The call returns at once. With a journal the job stays cancelled in
        later runs, too. To begin anew, give it another id.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("image", print)
                with bus.job("print") as job:
                    bus.publish("image", "large.png")
                    job.cancel()
            ```

        Returns:
            The number of deliveries that were open.
        """
        return self._book.cancel_for_good(self._state)

    @property
    def name(self) -> str:
        """The name of the job, as given to `EventBus.job`."""
        return self._state.name

    @property
    def id(self) -> str:
        """An id that no other job has, as in `JobDone`. With a journal, the next run knows it."""
        return self._state.id

    @property
    def done(self) -> bool:
        """Whether the block is left, all is settled, and `JobDone` is published.

        With a journal, `done` is true from the start if an earlier run finished the job.
        """
        return self._state.told

    @property
    def pending(self) -> int:
        """Number of deliveries that are not settled.

        Deliveries that a journal keeps for the next run, or for a handler that is not subscribed,
        count too.
        """
        return self._state.open + self._state.kept

    @property
    def succeeded(self) -> int:
        """Number of deliveries that succeeded."""
        return self._state.succeeded

    @property
    def failed(self) -> int:
        """Number of deliveries that failed for good. A delivery that is tried again is pending."""
        return self._state.failed

    @property
    def cancelled(self) -> int:
        """Number of deliveries that were cancelled."""
        return self._state.cancelled

    def tree(self) -> str:
        """Draw the job: its events, their deliveries, and the events that these published in turn.

        The tree shows the first 1,000 events, and says how many more there are. With a journal it
        shows the events of this run.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", len)
                with bus.job("count") as job:
                    bus.publish("word", "hello")
                print(job.tree())
            ```
        """
        nodes, unshown = self._book.nodes(self._state)
        lines = [repr(self)[1:-1], *drawn(nodes)]
        if unshown:
            lines.append(f"... and {unshown} more events")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Say how its deliveries stand."""
        counts = self._state
        ends = (
            (counts.succeeded, "succeeded"),
            (counts.failed, "failed"),
            (counts.cancelled, "cancelled"),
            (self.pending, "pending"),
        )
        shown_ends = ", ".join(f"{number} {state}" for number, state in ends if number)
        return f"<Job {self.name!r}: {shown_ends or 'nothing published'}>"
