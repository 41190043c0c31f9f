# SPDX-License-Identifier: MIT
"""The statistics of a bus: immutable snapshots of its counters and times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar

from procbus.core.handler import Handler
from procbus.core.histogram import Histogram
from procbus.core.overview import Overview, Table, shown_as
from procbus.core.subscription import Subscription
from procbus.core.text import seconds, share

# The statistics of a bus in plain text, as tables.

_Row = TypeVar("_Row")
#: Head of each column, with a function that makes its cells; numbers get thousands separators.
_Columns: TypeAlias = dict[str, Callable[[_Row], int | str]]

_LANE: _Columns[LaneStats] = {
    "depth": lambda lane: lane.depth,
    "workers": lambda lane: lane.workers,
    "busy": lambda lane: lane.busy,
    "used": lambda lane: share(lane.utilisation),
}
_LANE_TROUBLE: _Columns[LaneStats] = {
    "restarts": lambda lane: lane.restarts,
    "abandoned": lambda lane: lane.abandoned,
    "paused": lambda lane: lane.paused,
}
_HANDLER: _Columns[HandlerStats] = {
    "published": lambda handler: handler.published,
    "pending": lambda handler: handler.pending,
    "running": lambda handler: handler.running,
    "succeeded": lambda handler: handler.succeeded,
    "queue p50": lambda handler: seconds(handler.queue_s.p50),
    "queue p99": lambda handler: seconds(handler.queue_s.p99),
    "run p50": lambda handler: seconds(handler.run_s.p50),
    "run p99": lambda handler: seconds(handler.run_s.p99),
}
_HANDLER_TROUBLE: _Columns[HandlerStats] = {
    "failed": lambda handler: handler.failed,
    "cancelled": lambda handler: handler.cancelled,
    "held": lambda handler: handler.held,
    "retried": lambda handler: handler.retried,
    "timed out": lambda handler: handler.timed_out,
    "crashed": lambda handler: handler.crashed,
    "over memory": lambda handler: handler.over_memory,
    "runs in": lambda handler: handler.place if handler.decided else "",
}


def stats_overview(stats: BusStats) -> Overview:
    """Describe the bus in one line, then a table of its lanes and one of its handlers.

    Columns for trouble, such as `crashed`, appear only when there was some.
    """
    parts: list[str | Table] = [
        f"{stats.pending:,} pending, {stats.retrying:,} of them to be tried again; "
        f"{stats.dead_letters:,} dead letters; {stats.unrouted:,} events unrouted"
    ]
    if stats.lanes:
        parts.append(_table("lane", stats.lanes, _LANE, _LANE_TROUBLE))
    if stats.handlers:
        parts.append(_table("handler", stats.handlers, _HANDLER, _HANDLER_TROUBLE))
    return parts


def _table(
    what: str, rows: Mapping[str, _Row], always: _Columns[_Row], trouble: _Columns[_Row]
) -> Table:
    columns = always | {
        head: cell for head, cell in trouble.items() if any(map(cell, rows.values()))
    }
    return Table(
        (what, *columns),
        [(name, *(_text(cell(row)) for cell in columns.values())) for name, row in rows.items()],
    )


def _text(cell: int | str) -> str:
    return f"{cell:,}" if isinstance(cell, int) else cell or "-"


@dataclass(frozen=True, slots=True, repr=False)
class Percentiles:
    """Percentiles of a duration, in seconds, right to 4.5 %; None when nothing was measured.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            bus.publish("word", "hello").wait()
            print(bus.stats().handlers["builtins.len"].run_s)
        ```
    """

    #: Median: half of all durations are no longer than this.
    p50: float | None = None
    #: Nine of ten durations are no longer than this.
    p90: float | None = None
    #: 99 of 100 durations are no longer than this.
    p99: float | None = None
    #: The number of durations, and their sum in seconds. Handlers shorter than 100 us are sampled,
    #: and each sample stands for the runs since the one before: the number is exact.
    count: int = 0
    total_s: float = 0.0
    #: The number of durations shorter than each of `BUCKET_BOUNDS_S`; empty when there were none.
    buckets: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """The figures with units."""
        if self.p50 is None:
            return "<nothing measured>"
        return f"<p50 {seconds(self.p50)}, p90 {seconds(self.p90)}, p99 {seconds(self.p99)}>"


NOT_MEASURED = Percentiles()

_OCTAVES = range(-17, 13)
#: Bounds of `Percentiles.buckets`, in seconds: powers of 2 from 7.6 us to 68 min; because the
#: buckets of a `Histogram` add up to these without a remainder.
BUCKET_BOUNDS_S = tuple(2.0**octave for octave in _OCTAVES)


@dataclass(frozen=True, slots=True)
class HandlerStats:
    """Counters and times of one handler on one bus, since the bus was made.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            bus.publish("word", "hello").wait()
            print(bus.stats().handlers["builtins.len"])
        ```
    """

    published: int = 0
    #: Deliveries in the handler now.
    running: int = 0
    succeeded: int = 0
    #: Failed for good: a delivery with attempts left does not count.
    failed: int = 0
    #: Attempts that another attempt followed.
    retried: int = 0
    #: Attempts that ended in this way, whether another followed or not.
    timed_out: int = 0
    crashed: int = 0
    over_memory: int = 0
    #: Cancelled by closing the bus, before the handler began or while it ran.
    cancelled: int = 0
    #: Pending deliveries that wait until the handler's ``rate=`` lets them go.
    held: int = 0
    #: The lane of the handler; and the reason, if the handler was declared "auto" and has moved, or
    #: if the bus has chosen its place (``cpu="auto"``).
    kind: Literal["io", "cpu"] = "io"
    decided: str = ""
    #: The place where the handler runs: "threads", "event loop", "processes", "cluster"; or
    #: "inline", in the thread that drains an `InlineBus`.
    place: str = ""
    #: Running average of the handler's run time in seconds; None before its first run.
    average_s: float | None = None
    #: Time from publishing to the first attempt. Handlers shorter than 100 us are sampled.
    queue_s: Percentiles = NOT_MEASURED
    #: Duration of each attempt, successful or not; likewise sampled.
    run_s: Percentiles = NOT_MEASURED

    @property
    def pending(self) -> int:
        """Deliveries that are published and not settled, waiting ones and running ones."""
        return self.published - self.succeeded - self.failed - self.cancelled


@dataclass(frozen=True, slots=True)
class LaneStats:
    """The state of one lane at the moment of the snapshot.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            bus.publish("word", "hello").wait()
            print(bus.stats().lanes["io"])
        ```
    """

    #: Deliveries that wait for a worker, or behind another of their key or handler.
    depth: int
    #: All workers of the lane, and the workers that are running a handler.
    workers: int
    busy: int
    #: Number of workers that were replaced.
    restarts: int
    #: Threads left behind in a handler that timed out.
    abandoned: int = 0
    #: Share of the workers' time that was spent in handlers since the first worker started, from 0
    #: to 1; None before the first worker.
    utilisation: float | None = None
    #: Why the lane begins no delivery now (memory is short, the circuit is open); "" if it does.
    paused: str = ""


def together(lanes: Sequence[LaneStats]) -> LaneStats:
    """Add up the states of lanes of one kind; without their utilisation."""
    return LaneStats(
        sum(each.depth for each in lanes),
        sum(each.workers for each in lanes),
        sum(each.busy for each in lanes),
        sum(each.restarts for each in lanes),
        abandoned=sum(each.abandoned for each in lanes),
        paused="; ".join(dict.fromkeys(each.paused for each in lanes if each.paused)),
    )


@dataclass(frozen=True, slots=True)
class SharedMemoryStats:
    """Memory shared with the workers of the cpu lane for large events and results, in bytes.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            bus.publish("word", "hello").wait()
            print(bus.stats().shared_memory)
        ```
    """

    #: Blocks of open events; blocks of settled events that handlers still keep a view of; and
    #: blocks that wait to be used again.
    in_flight: int = 0
    kept: int = 0
    idle: int = 0
    #: Bytes copied to workers and from workers, so far.
    sent: int = 0
    received: int = 0
    #: Maximum of all blocks of events together; 0 before the first large event, and if memory is
    #: not shared.
    limit: int = 0


NOTHING_SHARED = SharedMemoryStats()


@shown_as(stats_overview)
@dataclass(frozen=True, slots=True)
class BusStats:
    """The state of a bus. Its parts are read one after the other, while work goes on.

    `print` it for a table.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            bus.publish("word", "hello").wait()
            print(bus.stats())
        ```
    """

    #: Deliveries published and not settled.
    pending: int
    #: Events that had no handler.
    unrouted: int
    #: By name of the handler; handlers with the same name are counted together.
    handlers: Mapping[str, HandlerStats]
    #: By kind: "io" and "cpu".
    lanes: Mapping[str, LaneStats]
    #: Deliveries that wait for their next attempt; they are pending too.
    retrying: int = 0
    #: Number of dead letters that are kept.
    dead_letters: int = 0
    #: Large events and results on their way to workers and back.
    shared_memory: SharedMemoryStats = NOTHING_SHARED


def collect_stats(
    pending: int,
    unrouted: int,
    subscriptions: Sequence[Subscription],
    lanes: Mapping[str, LaneStats],
    *,
    running: Mapping[str, int] = MappingProxyType({}),
    place_of: Callable[[Handler], str] = lambda _: "",
    retrying: int = 0,
    dead_letters: int = 0,
    shared_memory: SharedMemoryStats = NOTHING_SHARED,
) -> BusStats:
    """Put a snapshot together.

    Args:
        pending: deliveries published and not settled.
        unrouted: events that had no handler.
        subscriptions: all subscriptions of the bus; their counters are read without a lock.
        lanes: the state of the lanes, by kind.
        running: deliveries in a handler now, by name of the handler.
        place_of: returns the place where a handler runs.
        retrying: deliveries that wait for their next attempt.
        dead_letters: number of dead letters that are kept.
        shared_memory: large events and results on their way.
    """
    by_name: dict[str, list[Subscription]] = {}
    for subscription in subscriptions:
        by_name.setdefault(subscription.handler.name, []).append(subscription)
    handlers = {
        name: _handler_stats(same, running.get(name, 0), place_of(same[0].handler))
        for name, same in by_name.items()
    }
    return BusStats(
        pending,
        unrouted,
        MappingProxyType(handlers),
        lanes,
        retrying,
        dead_letters,
        shared_memory,
    )


def _handler_stats(same: Sequence[Subscription], running: int, place: str) -> HandlerStats:
    """Count subscriptions with one name together."""
    # Settled deliveries are counted before published ones. In the other order, a delivery published
    # and settled in between would make the number of pending ones negative.
    succeeded = sum(each.succeeded for each in same)
    failed = sum(each.failed for each in same)
    cancelled = sum(each.cancelled + each.stopped for each in same)
    queued, ran = Histogram(), Histogram()
    for each in same:
        queued.merge(each.queued)
        ran.merge(each.ran)
    averages_s = (each.average_s for each in same)
    return HandlerStats(
        published=sum(each.published + each.unqueued for each in same),
        running=running,
        succeeded=succeeded,
        failed=failed,
        retried=sum(each.retried for each in same),
        timed_out=sum(each.timed_out for each in same),
        crashed=sum(each.crashed for each in same),
        over_memory=sum(each.over_memory for each in same),
        cancelled=cancelled,
        held=sum(each.held + each.delayed for each in same),
        kind=same[0].handler.kind,
        decided=same[0].decided,
        place=place,
        average_s=next((average_s for average_s in averages_s if average_s is not None), None),
        queue_s=_percentiles(queued),
        run_s=_percentiles(ran),
    )


def _percentiles(histogram: Histogram) -> Percentiles:
    count = histogram.count
    if not count:
        return NOT_MEASURED
    p50, p90, p99 = map(histogram.quantile, (0.5, 0.9, 0.99))
    buckets = histogram.shorter_than(_OCTAVES)
    return Percentiles(p50, p90, p99, count, histogram.total, buckets)
