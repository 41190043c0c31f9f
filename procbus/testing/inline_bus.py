# SPDX-License-Identifier: MIT
"""A bus for tests: handlers run at once, in the thread that publishes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, TypeVar, Unpack

from procbus.assembly import Assembly, Makers, make_inline_lanes
from procbus.bus import EventBus
from procbus.core.errors import OptionError
from procbus.core.handler import OPTIONS_OF_A_HANDLER
from procbus.core.options import shows_options
from procbus.core.receipt import FanReceipt, Receipt, SoleReceipt
from procbus.core.resources import Resource
from procbus.core.validation import did_you_mean, shown
from procbus.dispatch.dispatcher import Dispatcher
from procbus.lanes.inline import InlineRetries
from procbus.progress.show import ShowProgress
from procbus.settings import BusOptions, LocalOptions, Settings, make_settings
from procbus.testing.captured import Captured
from procbus.testing.clock import Clock


class InlineBus(EventBus):
    """An `EventBus` that runs handlers at once, in the publishing thread, and records all events.

    Routing, receipts, retries, dead letters, `current()`, statistics and `executor()` work as on
    every bus; there are no threads and no processes. When `publish` returns, all handlers of the
    event have run, and so have the handlers of events that they published. Only retries and delayed
    events that wait for the clock are left. An `async def` handler is run to its end. `max_memory`,
    `concurrency` and `key` have no effect here. Options of `EventBus` that are not named below are
    refused, because they need workers, shared memory or a journal.

    Example:
        ```python
        from procbus import current
        from procbus.testing import InlineBus


        def split(text: str) -> None:
            for word in text.split():
                current().publish("word", word)


        bus = InlineBus(handlers=[])
        bus.subscribe("text", split)
        bus.publish("text", "two words")
        assert bus.published.of("word").events == ["two", "words"]
        ```

    Args:
        handlers: as for `EventBus`.
        pickling: pickle the events, results and functions of cpu handlers, as for a worker process.
            An object that cannot travel to a worker then fails its delivery, as on a real bus.
        clock: the clock for the waits before retries, and for time limits. None for a clock that
            goes on by itself, so that retries follow at once.
        max_pending: as for `EventBus`.
        on_full: as for `EventBus`.
        worker_init: called once, before the first cpu handler.
        on_failure: as for `EventBus`.
        carry: as for `EventBus`.
        resources: a dict from each resource to its replacement. A value is given to handlers as it
            is. A function decorated with `procbus.resource` is opened and closed in place of the
            replaced resource. An async one replaces only async ones.

    Raises:
        OptionError: an option makes no sense.
        SubscriptionError: one of `handlers` is not subscribed.
    """

    @shows_options(LocalOptions, Settings)
    def __init__(
        self,
        handlers: Iterable[Callable[..., Any] | ModuleType] | None = None,
        *,
        pickling: bool = False,
        clock: Clock | None = None,
        resources: Mapping[Any, Any] | None = None,
        **options: Unpack[LocalOptions],
    ) -> None:
        _check_names(options)
        if resources is not None:
            _check_resources(resources)
        self.clock = Clock(auto=True) if clock is None else clock
        self._receipts: dict[int, Receipt] = {}
        retries = InlineRetries(self.clock)
        make = Makers(
            lambda: retries,
            partial(
                Dispatcher,
                sole=partial(_noted, self._receipts, SoleReceipt),
                fan=partial(_noted, self._receipts, FanReceipt),
            ),
            partial(make_inline_lanes, self.clock, retries, pickling=pickling, resources=resources),
        )
        self._take(Assembly(make_settings(options), handlers, make))

    def __del__(self) -> None:
        """Do nothing: there are no workers to end."""

    def drain(self, timeout: float | None = None, *, progress: ShowProgress = False) -> bool:
        """Run all deliveries that wait for their time, even if not yet due. No others are left."""
        self._parts.lanes.expect_close()
        return super().drain(timeout, progress=progress)

    @property
    def published(self) -> Captured:
        """All events published so far, by the test and by handlers, in order."""
        return Captured([self._receipts[id] for id in sorted(self._receipts)])

    def assert_published(
        self,
        *topics: type | str,
        count: int | None = None,
        where: Callable[[Any], bool] | None = None,
    ) -> Captured:
        """Assert that such events were published, and return their receipts.

        Example:
            ```python
            from procbus.testing import InlineBus

            bus = InlineBus(handlers=[])
            bus.publish("order.paid", 17)
            bus.assert_published("order.*", count=1, where=lambda order: order == 17)
            ```

        Args:
            *topics: classes, and dotted strings with `*` and `#`; none for all.
            count: the exact number; None for at least one.
            where: a function of the event that says whether it is wanted.

        Raises:
            AssertionError: no such event was published, or not exactly `count`.
        """
        found = self.published.of(*topics, where=where)
        if len(found) != count if count is not None else not found:
            named = ", ".join(repr(t) if isinstance(t, str) else t.__name__ for t in topics)
            wanted = "at least one" if count is None else f"exactly {count}"
            raise AssertionError(
                f"expected {wanted} of {named or 'any topic'} to be published, but there are "
                f"{len(found)}{' where that holds' if where else ''}; {self.published!r}"
            )
        return found

    def assert_no_failures(self) -> None:
        """Assert that the test has looked at every failure, on a receipt or dead letter.

        Example:
            ```python
            from json import loads

            from procbus.testing import InlineBus

            bus = InlineBus(handlers=[])
            bus.subscribe("number", loads)
            bus.publish("number", "7")
            bus.assert_no_failures()
            ```

        Raises:
            AssertionError: there is another failure; the message has the tracebacks.
        """
        summary = self._parts.settlement.unseen.summary()
        if summary is None:
            return
        letters = [f"{letter}\n{letter.stacks[-1]}" for letter in self.dead_letters]
        raise AssertionError("\n\n".join([summary, *letters]))


def _check_names(options: Mapping[str, object]) -> None:
    known = ("handlers", "pickling", "clock", "resources", *LocalOptions.__annotations__)
    unknown = [name for name in options if name not in known]
    for name in unknown:
        if name in OPTIONS_OF_A_HANDLER and name not in BusOptions.__annotations__:
            raise OptionError(
                f"{name}= is an option of a handler, not of InlineBus: @subscribe({name}=...)"
            )
        if name not in BusOptions.__annotations__ and (hint := did_you_mean(name, known, "=")):
            raise OptionError(f"InlineBus has no option {name}={hint}")
    if unknown:
        raise OptionError(
            f"InlineBus has no option {', '.join(unknown)}: it has no workers, no shared "
            "memory and no journal; use an EventBus for tests of these"
        )


def _check_resources(replaced: object) -> None:
    if not isinstance(replaced, Mapping):
        raise OptionError(
            f"resources= of InlineBus takes a dict from each resource to its replacement, such as "
            f"{{model: FakeModel()}}, not {shown(replaced)}"
        )
    for each, fake in replaced.items():
        if not isinstance(each, Resource):
            raise OptionError(
                f"resources= of InlineBus takes resources, such as {{model: FakeModel()}}, not "
                f"{each!r}: give the function that is decorated with @resource"
            )
        if isinstance(fake, Resource) and fake.is_async and not each.is_async:
            raise OptionError(
                f"the async resource {fake.name} cannot replace {each.name}, which handlers that "
                "are not `async def` may use: decorate a plain function instead"
            )


_R = TypeVar("_R", bound=Receipt)


def _noted(receipts: dict[int, Receipt], make: Callable[..., _R], *about: Any) -> _R:
    """Make a receipt, and keep it for `published`."""
    receipt = make(*about)
    receipts[receipt.id] = receipt
    return receipt
