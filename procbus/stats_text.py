# SPDX-License-Identifier: MIT
"""The statistics of a bus as people read them: tables in plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from procbus.plain_text import seconds, share, table

if TYPE_CHECKING:
    from procbus.stats import BusStats, HandlerStats, LaneStats

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
