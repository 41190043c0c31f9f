# SPDX-License-Identifier: MIT
"""The state of a bus as plain JSON: lanes, handlers, workers, dead letters, advice.

A snapshot is bounded in size, and takes a few milliseconds. Taking it runs no code of the user's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol

from procbus.core.dead_letter import DeadLetter
from procbus.core.text import printable
from procbus.lanes.lanes import PAUSED_BY_HAND
from procbus.live.metrics import figures
from procbus.live.plain import cut, plain_error, plain_text

if TYPE_CHECKING:
    from procbus.advice.advisor import Advisor
    from procbus.core.progress import Progress
    from procbus.core.stats import BusStats, HandlerStats, LaneStats, Percentiles
    from procbus.dispatch.admission import Admission
    from procbus.dispatch.settlement import Settlement
    from procbus.lanes.lanes import Lanes
    from procbus.supervision.health import WorkerHealth

#: Version of the protocol, of which the snapshot is a part.
LIVE_PROTOCOL = 1
#: Maxima of a snapshot: handlers, workers, and the newest dead letters.
HANDLERS_SHOWN = 200
WORKERS_SHOWN = 300
LETTERS_SHOWN = 50
#: Maximum length of a name, in characters.
_NAME = 200
#: Interval between two readings of the advice, in seconds; because it follows slowly.
_ADVICE_S = 5.0

#: A part of a snapshot.
Facts = dict[str, Any]


class Seen(Protocol):
    """The parts of a bus, as far as the live view uses them. From any thread."""

    @property
    def admission(self) -> Admission:
        """Counts the pending deliveries."""

    @property
    def advisor(self) -> Advisor:
        """Advises on the kind of handlers."""

    @property
    def lanes(self) -> Lanes:
        """The lanes."""

    @property
    def settlement(self) -> Settlement:
        """Has the dead letters."""

    @property
    def closing(self) -> bool:
        """Whether the bus is being closed."""

    def stats(self) -> BusStats:
        """Counters and times."""

    def health(self, *, brief: bool = False) -> tuple[WorkerHealth, ...]:
        """The state of each worker."""


class Snapshots:
    """Takes snapshots of one bus. Not thread-safe.

    Args:
        bus: the bus.
        number: number of the bus in its process.
        since: start of the bus, in seconds of `time.time()`.
        journal: path of its journal; None for none.
    """

    def __init__(self, bus: Seen, number: int, since: float, journal: str | None) -> None:
        self._bus = bus
        self._since = since
        self._facts: Facts = {
            "pid": os.getpid(),
            "number": number,
            "script": printable(cut(script(), _NAME)),
            "since": since,
            "python": sys.version.split()[0],
            "journal": None if journal is None else printable(cut(journal, _NAME)),
        }
        self._advice: list[Facts] = []
        self._advised_at = -_ADVICE_S

    def brief(self) -> Facts:
        """The few facts that `procbus ps` shows."""
        stats = self._bus.stats()
        lanes = stats.lanes.values()
        return {
            "protocol": LIVE_PROTOCOL,
            "bus": self._about(),
            "pending": stats.pending,
            "queued": sum(lane.depth for lane in lanes),
            "running": sum(stats.running for stats in stats.handlers.values()),
            "succeeded": sum(each.succeeded for each in stats.handlers.values()),
            "failed": sum(each.failed for each in stats.handlers.values()),
            "workers": sum(lane.workers for lane in lanes),
            "dead_letters": stats.dead_letters,
        }

    def metrics(self) -> Facts:
        """The figures that `procbus.live.metrics.families` takes."""
        return figures(self._bus.stats(), self._bus.health(brief=True))

    def take(self, before: Counts | None = None) -> Facts:
        """Take a snapshot.

        Args:
            before: the counts of an earlier snapshot, for the rates; the new counts replace them.
        """
        bus = self._bus
        stats = bus.stats()
        workers = bus.health(brief=True)
        rates = {} if before is None else before.rates(stats.handlers)
        handlers = sorted(stats.handlers.items(), key=lambda each: -each[1].published)
        return {
            "protocol": LIVE_PROTOCOL,
            "at": time(),
            "bus": self._about(),
            "pending": stats.pending,
            "max_pending": bus.admission.max_pending,
            "retrying": stats.retrying,
            "unrouted": stats.unrouted,
            "lanes": [_lane(kind, lane) for kind, lane in stats.lanes.items()],
            "handlers": [
                _handler(name, handler, rates.get(name))
                for name, handler in handlers[:HANDLERS_SHOWN]
            ],
            "handlers_left_out": max(0, len(handlers) - HANDLERS_SHOWN),
            "workers": [_worker(each) for each in workers[:WORKERS_SHOWN]],
            "workers_left_out": max(0, len(workers) - WORKERS_SHOWN),
            "dead_letters": [
                _letter(each) for each in bus.settlement.dead_letters.newest(LETTERS_SHOWN)
            ],
            "dead_letters_kept": stats.dead_letters,
            "advice": self._advise(),
        }

    def _about(self) -> Facts:
        state = "closing" if self._bus.closing else "open"
        return {**self._facts, "age_s": max(0.0, time() - self._since), "state": state}

    def _advise(self) -> list[Facts]:
        now = monotonic()
        if now - self._advised_at >= _ADVICE_S:
            self._advised_at = now
            self._advice = [
                {
                    "handler": printable(cut(each.handler, _NAME)),
                    "level": each.level,
                    "suits": each.kind,
                    "gain": each.gain,
                    "text": printable(cut(each.text, 2 * _NAME)),
                }
                for each in self._bus.advisor.advice()[:HANDLERS_SHOWN]
                if each.level
            ]
        return self._advice


class Counts:
    """The numbers of settled deliveries at an earlier moment, for rates. One for each watcher."""

    def __init__(self) -> None:
        self._at = 0.0
        self._settled: dict[str, int] = {}

    @property
    def taken(self) -> bool:
        """Whether there was an earlier moment."""
        return self._at > 0

    def rates(self, handlers: Mapping[str, HandlerStats]) -> dict[str, float]:
        """Settled deliveries a second since the last call, by handler; empty the first time."""
        now, before = monotonic(), self._settled
        span_s = now - self._at
        self._settled = {
            name: each.succeeded + each.failed + each.cancelled for name, each in handlers.items()
        }
        first, self._at = not self._at, now
        if first or span_s <= 0:
            return {}
        return {
            name: (settled - before.get(name, 0)) / span_s
            for name, settled in self._settled.items()
        }


def script() -> str:
    """The script of this process, as its user knows it."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if isinstance(file, str):
        return file
    if "ipykernel" in sys.modules:
        return "(notebook)"
    words = sys.orig_argv
    return "python -c" if "-c" in words[1:] else "(interactive)"


def letter_key(letter: DeadLetter) -> str:
    """The name of a dead letter in the protocol, which is sent with the letter."""
    return f"{letter.event_id}/{letter.failed_at.timestamp()!r}/{letter.handler}"


def _lane(kind: str, lane: LaneStats) -> Facts:
    return {
        "kind": kind,
        "queued": lane.depth,
        "workers": lane.workers,
        "busy": lane.busy,
        "used": lane.utilisation,
        "restarts": lane.restarts,
        "abandoned": lane.abandoned,
        "paused": printable(lane.paused),
        "by_hand": lane.paused == PAUSED_BY_HAND,
    }


def _handler(name: str, stats: HandlerStats, rate: float | None) -> Facts:
    return {
        "name": printable(cut(name, _NAME)),
        "kind": stats.kind,
        "rate": rate,
        "published": stats.published,
        "pending": stats.pending,
        "running": stats.running,
        "succeeded": stats.succeeded,
        "failed": stats.failed,
        "cancelled": stats.cancelled,
        "retried": stats.retried,
        "timed_out": stats.timed_out,
        "crashed": stats.crashed,
        "over_memory": stats.over_memory,
        "queue_s": _times(stats.queue_s),
        "run_s": _times(stats.run_s),
    }


def _times(times: Percentiles) -> Facts:
    return {"p50": times.p50, "p90": times.p90, "p99": times.p99}


def _worker(health: WorkerHealth) -> Facts:
    return {
        "name": health.name,
        "kind": health.kind,
        "pid": health.pid,
        "state": health.state,
        "handler": None if health.handler is None else printable(cut(health.handler, _NAME)),
        "event_id": health.event_id,
        "running_s": health.running_s,
        "progress": None if health.progress is None else _progress(health.progress),
        "memory_bytes": health.memory_bytes,
        "cpu_s": health.cpu_s,
        "cpu_share": health.cpu_share,
        "events_done": health.events_done,
        "restarts": health.restarts,
        "last_exit": printable(cut(health.last_exit, _NAME)),
    }


def _progress(progress: Progress) -> Facts:
    return {
        "done": progress.done,
        "total": progress.total,
        "note": printable(" ".join(progress.note.split())),
        "text": printable(str(progress)),
        "age_s": max(0.0, monotonic() - progress.at),
    }


def _letter(letter: DeadLetter) -> Facts:
    return {
        "key": letter_key(letter),
        "event_id": letter.event_id,
        "handler": printable(cut(letter.handler, _NAME)),
        "kind": letter.kind,
        "topic": None if letter.topic is None else printable(cut(letter.topic, _NAME)),
        "event": plain_text(letter.event),
        "error": plain_error(letter.error),
        "attempts": len(letter.outcomes),
        "failed_at": letter.failed_at.timestamp(),
        "quarantined": letter.quarantined,
    }


def find_letter(letters: Sequence[DeadLetter], key: str) -> DeadLetter | None:
    """The letter that has this name in the protocol; None if there is none."""
    return next((each for each in letters if letter_key(each) == key), None)
