# SPDX-License-Identifier: MIT
"""What a bus has done so far: immutable snapshots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar

from procbus.core.histogram import Histogram
from procbus.core.subscription import Subscription
from procbus.core.text import seconds, share, table

# The statistics of a bus as people read them: tables in plain text.

_Row = TypeVar("_Row")
#: What stands under each head; a number is written with its thousands parted.
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
    "retried": lambda handler: handler.retried,
    "timed out": lambda handler: handler.timed_out,
    "crashed": lambda handler: handler.crashed,
    "over memory": lambda handler: handler.over_memory,
    "moved to": lambda handler: handler.kind if handler.decided else "",
}


def stats_text(stats: BusStats) -> str:
    """Write the bus in one line, then a table of its lanes and one of its handlers.

    Columns of trouble, such as `crashed`, are there only when there was some.
    """
    parts = [
        f"{stats.pending:,} pending, {stats.retrying:,} of them to be tried again; "
        f"{stats.dead_letters:,} dead letters; {stats.unrouted:,} events unrouted"
    ]
    if stats.lanes:
        parts.append(_table("lane", stats.lanes, _LANE, _LANE_TROUBLE))
    if stats.handlers:
        parts.append(_table("handler", stats.handlers, _HANDLER, _HANDLER_TROUBLE))
    return "\n\n".join(parts)


def _table(
    what: str, rows: Mapping[str, _Row], always: _Columns[_Row], trouble: _Columns[_Row]
) -> str:
    columns = always | {
        head: cell for head, cell in trouble.items() if any(map(cell, rows.values()))
    }
    return table(
        (what, *columns),
        [(name, *(_text(cell(row)) for cell in columns.values())) for name, row in rows.items()],
    )


def _text(cell: int | str) -> str:
    return f"{cell:,}" if isinstance(cell, int) else cell or "-"


@dataclass(frozen=True, slots=True, repr=False)
class Percentiles:
    """How long something took, in seconds, to within 4.5 %; all None when nothing was measured."""

    #: Half of all took no longer.
    p50: float | None = None
    #: Nine of ten took no longer.
    p90: float | None = None
    #: 99 of 100 took no longer.
    p99: float | None = None

    def __repr__(self) -> str:
        """The figures as people read them."""
        if self.p50 is None:
            return "<nothing measured>"
        return f"<p50 {seconds(self.p50)}, p90 {seconds(self.p90)}, p99 {seconds(self.p99)}>"


NOT_MEASURED = Percentiles()


@dataclass(frozen=True, slots=True)
class HandlerStats:
    """Deliveries of one handler on one bus, counted since it was made."""

    published: int = 0
    #: In the handler just now.
    running: int = 0
    succeeded: int = 0
    #: Failed for good: those with attempts left are not among them.
    failed: int = 0
    #: Attempts that were followed by another.
    retried: int = 0
    #: Attempts that ended so, followed by another or not.
    timed_out: int = 0
    crashed: int = 0
    over_memory: int = 0
    #: Cancelled by closing the bus, before the handler began or in the middle of it.
    cancelled: int = 0
    #: The lane that it is on; and why, where it was declared "auto" and has moved.
    kind: Literal["io", "cpu"] = "io"
    decided: str = ""
    #: Running average of the handler's run time in seconds; None until it has run once.
    average_s: float | None = None
    #: From publishing to the first attempt. Of handlers shorter than 100 us a sample is measured.
    queue_s: Percentiles = NOT_MEASURED
    #: Each attempt, successful or not; likewise.
    run_s: Percentiles = NOT_MEASURED

    @property
    def pending(self) -> int:
        """Published and not settled; those in the handler and between attempts are among them."""
        return self.published - self.succeeded - self.failed - self.cancelled


@dataclass(frozen=True, slots=True)
class LaneStats:
    """One lane just now."""

    #: Deliveries that wait for a worker, or behind another of their key or handler.
    depth: int
    #: Workers that there are, and those in a handler.
    workers: int
    busy: int
    #: Workers that had to be replaced.
    restarts: int
    #: Threads left behind in a handler that was timed out; of the io lane only.
    abandoned: int = 0
    #: Share of the workers' time that was spent in handlers since the first of them started, from
    #: 0 to 1; None before that.
    utilisation: float | None = None
    #: Why no new delivery is begun (memory is short, the circuit is open); "" when they are.
    paused: str = ""


@dataclass(frozen=True, slots=True)
class SharedMemoryStats:
    """Memory shared with the workers of the cpu lane, for what is large, in bytes."""

    #: In blocks of events that are not settled; in blocks of settled ones that handlers keep a view
    #: of; and in blocks that wait to be used again.
    in_flight: int = 0
    kept: int = 0
    idle: int = 0
    #: Copied to workers, and from them, so far.
    sent: int = 0
    received: int = 0
    #: All that the blocks of events may take together; 0 before the first large event, and where
    #: none are shared.
    limit: int = 0


NOTHING_SHARED = SharedMemoryStats()


@dataclass(frozen=True, slots=True)
class BusStats:
    """A bus just now. The parts are read one after the other, while work goes on.

    `print` it for a table.
    """

    #: Deliveries published and not settled.
    pending: int
    #: Events that no handler took.
    unrouted: int
    #: By name of the handler; handlers of the same name are counted together.
    handlers: Mapping[str, HandlerStats]
    #: By kind: "io" and "cpu".
    lanes: Mapping[str, LaneStats]
    #: Deliveries that wait for their next attempt; they are pending too.
    retrying: int = 0
    #: Dead letters that are kept.
    dead_letters: int = 0
    #: Large events and results on their way to workers and back.
    shared_memory: SharedMemoryStats = NOTHING_SHARED

    def __str__(self) -> str:
        """The figures in plain text: the bus, its lanes, its handlers."""
        return stats_text(self)


def collect_stats(
    pending: int,
    unrouted: int,
    subscriptions: Sequence[Subscription],
    lanes: Mapping[str, LaneStats],
    *,
    running: Mapping[str, int] = MappingProxyType({}),
    retrying: int = 0,
    dead_letters: int = 0,
    shared_memory: SharedMemoryStats = NOTHING_SHARED,
) -> BusStats:
    """Put a snapshot together.

    Args:
        pending: deliveries published and not settled.
        unrouted: events that no handler took.
        subscriptions: those of the bus; their counters are read without a lock.
        lanes: the lanes just now, by kind.
        running: deliveries in the handler just now, by name of the handler.
        retrying: deliveries that wait for their next attempt.
        dead_letters: how many are kept.
        shared_memory: what is large, on its way.
    """
    by_name: dict[str, list[Subscription]] = {}
    for subscription in subscriptions:
        by_name.setdefault(subscription.handler.name, []).append(subscription)
    handlers = {name: _handler_stats(same, running.get(name, 0)) for name, same in by_name.items()}
    return BusStats(
        pending,
        unrouted,
        MappingProxyType(handlers),
        lanes,
        retrying,
        dead_letters,
        shared_memory,
    )


def _handler_stats(same: Sequence[Subscription], running: int) -> HandlerStats:
    """Count subscriptions of one name together."""
    # What is settled is read before what was published: the other way round, deliveries that are
    # published and settled in between would make the number pending negative.
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
        kind=same[0].handler.kind,
        decided=same[0].decided,
        average_s=next((average_s for average_s in averages_s if average_s is not None), None),
        queue_s=_percentiles(queued),
        run_s=_percentiles(ran),
    )


def _percentiles(histogram: Histogram) -> Percentiles:
    return Percentiles(*map(histogram.quantile, (0.5, 0.9, 0.99)))
