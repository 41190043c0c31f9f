# SPDX-License-Identifier: MIT
"""The metrics of buses: families of samples, as monitoring systems read them.

`figures` takes the figures of one bus as plain JSON, in the process of the bus. `families` names
and types these figures, and `exposition` writes them as text; both work in any process. None of
these functions runs code of the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from procbus.core.stats import BUCKET_BOUNDS_S
from procbus.core.text import printable

if TYPE_CHECKING:
    from procbus.core.stats import BusStats, HandlerStats, LaneStats, Percentiles
    from procbus.supervision.health import WorkerHealth

#: Maxima of workers, and of handlers, with their own samples: the first ones. Later handlers are
#: added up as `OTHER_HANDLERS`.
WORKERS_MEASURED = 300
HANDLERS_MEASURED = 1_000
OTHER_HANDLERS = "(other)"
#: Maximum length of a handler's name, in characters.
_NAME = 200

#: The figures of one bus: JSON.
Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Buckets:
    """The value of a histogram.

    Attributes:
        counts: upper bound of each bucket as text, with the number of values up to the bound. The
            last bound is "+Inf", with the number of all values.
        total: sum of the values.
    """

    counts: tuple[tuple[str, int], ...]
    total: float


#: Labels, and the value that belongs to them.
Labelled: TypeAlias = tuple[tuple[str, ...], Any]


# The figures of one bus.


def figures(stats: BusStats, workers: Sequence[WorkerHealth]) -> Figures:
    """Take the figures of a bus from which metrics are made.

    Args:
        stats: the `stats()` of the bus.
        workers: the `health()` of the bus.
    """
    return {
        "pending": stats.pending,
        "retrying": stats.retrying,
        "unrouted": stats.unrouted,
        "dead_letters": stats.dead_letters,
        "shared_memory": asdict(stats.shared_memory),
        "lanes": {
            kind: {**_lane(lane), "stalled": sum(_is_stalled(each, kind) for each in workers)}
            for kind, lane in stats.lanes.items()
        },
        "handlers": _handlers(stats.handlers),
        # Only processes: a thread shares the memory of the script, and its name comes only once.
        "workers": {
            each.name: {"memory_bytes": each.memory_bytes, "cpu_s": each.cpu_s}
            for each in workers[:WORKERS_MEASURED]
            if each.memory_bytes is not None
        },
    }


def _is_stalled(worker: WorkerHealth, kind: str) -> bool:
    return worker.kind == kind and worker.state == "stalled"


def _lane(lane: LaneStats) -> Figures:
    return {
        "queued": lane.depth,
        "workers": lane.workers,
        "busy": lane.busy,
        "restarts": lane.restarts,
        "abandoned": lane.abandoned,
        "used": lane.utilisation,
        "paused": bool(lane.paused),
    }


def _handlers(handlers: Mapping[str, HandlerStats]) -> list[Figures]:
    """The figures of each handler; handlers whose names look alike are added up."""
    found: dict[tuple[str, str], Figures] = {}
    for name, stats in handlers.items():
        taken = _handler(name, stats)
        key = taken["name"], stats.kind
        if key not in found and len(found) >= HANDLERS_MEASURED:
            taken["name"] = OTHER_HANDLERS
            key = OTHER_HANDLERS, stats.kind
        known = found.get(key)
        if known is None:
            found[key] = taken
        else:
            _add(known, taken)
    return list(found.values())


_COUNTED = (
    *("published", "pending", "running", "succeeded", "failed", "cancelled"),
    *("retried", "timed_out", "crashed", "over_memory"),
)


def _handler(name: str, stats: HandlerStats) -> Figures:
    return {
        "name": printable(name[:_NAME]),
        "kind": stats.kind,
        **{counted: getattr(stats, counted) for counted in _COUNTED},
        "queue": _times(stats.queue_s),
        "run": _times(stats.run_s),
    }


def _times(times: Percentiles) -> Figures:
    buckets = times.buckets or (0,) * len(BUCKET_BOUNDS_S)
    return {"count": times.count, "total_s": times.total_s, "buckets": list(buckets)}


def _add(known: Figures, other: Figures) -> None:
    for counted in _COUNTED:
        known[counted] += other[counted]
    for times in ("queue", "run"):
        mine, its = known[times], other[times]
        mine["count"] += its["count"]
        mine["total_s"] += its["total_s"]
        mine["buckets"] = [a + b for a, b in zip(mine["buckets"], its["buckets"], strict=True)]


# Names, types and labels.


def families(buses: Mapping[str, Figures]) -> list[Family]:
    """Make the families of several buses.

    Args:
        buses: by the value of the label `bus`, the figures of each bus.
    """
    parts = {
        name: (
            [((), taken)],
            [((kind,), lane) for kind, lane in taken["lanes"].items()],
            [((each["name"], each["kind"]), each) for each in taken["handlers"]],
            [((worker,), readings) for worker, readings in taken["workers"].items()],
        )
        for name, taken in buses.items()
    }
    return [
        Family(
            metric,
            [
                ((name, *labels, *own), value)
                for name, of_bus in parts.items()
                for labels, taken in of_bus[metric.part]
                for own, value in metric.values(taken)
                if value is not None
            ],
        )
        for metric in METRICS
    ]


#: The parts of the figures, with the labels of their samples.
_BUS, _LANES, _HANDLERS, _WORKERS = range(4)
_LABELS = ((), ("kind",), ("handler", "kind"), ("worker",))


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure with its name and type.

    Attributes:
        name: full name; the name of a counter ends in `_total`.
        kind: counter, gauge or histogram.
        text: its meaning, in a sentence.
        part: the part of the figures that has it.
        values: reads the samples of the metric in that part; their labels are `own`.
        own: names of labels that not all metrics of the part have.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    part: int
    values: Callable[[Figures], Iterable[Labelled]]
    own: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all labels."""
        return ("bus", *_LABELS[self.part], *self.own)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with its samples; the values of a histogram are `Buckets`."""

    metric: Metric
    samples: list[Labelled]


def _the(*path: str) -> Callable[[Figures], Iterable[Labelled]]:
    """One value, at the end of a path."""

    def values(taken: Any) -> Iterable[Labelled]:
        for key in path:
            taken = taken[key]
        return [((), taken)]

    return values


def _each(**of: str) -> Callable[[Figures], Iterable[Labelled]]:
    """Several values, each with a label: the label's value, and the key in the figures."""
    return lambda taken: [((label,), taken[key]) for label, key in of.items()]


def _memory(taken: Figures) -> Iterable[Labelled]:
    memory = taken["shared_memory"]
    return [((state,), memory[state]) for state in ("in_flight", "kept", "idle")]


def _durations(key: str) -> Callable[[Figures], Iterable[Labelled]]:
    def values(taken: Figures) -> Iterable[Labelled]:
        times = taken[key]
        counts = zip(_BOUNDS, (*times["buckets"], times["count"]), strict=True)
        return [((), Buckets(tuple(counts), times["total_s"]))]

    return values


_BOUNDS = (*map(repr, BUCKET_BOUNDS_S), "+Inf")

#: All metrics of a bus, in the order of docs/metrics.md.
METRICS = (
    Metric(
        "procbus_deliveries_total",
        "counter",
        "Deliveries that ended for good.",
        _HANDLERS,
        _each(succeeded="succeeded", failed="failed", cancelled="cancelled"),
        ("outcome",),
    ),
    Metric(
        "procbus_deliveries_published_total",
        "counter",
        "Deliveries that were published.",
        _HANDLERS,
        _the("published"),
    ),
    Metric(
        "procbus_deliveries_pending",
        "gauge",
        "Deliveries that have not ended: waiting ones and running ones.",
        _HANDLERS,
        _the("pending"),
    ),
    Metric(
        "procbus_deliveries_running",
        "gauge",
        "Deliveries in the handler now.",
        _HANDLERS,
        _the("running"),
    ),
    Metric(
        "procbus_retries_total",
        "counter",
        "Failed attempts that another attempt followed.",
        _HANDLERS,
        _the("retried"),
    ),
    Metric(
        "procbus_attempts_stopped_total",
        "counter",
        "Attempts that did not come to their own end, whether another followed or not.",
        _HANDLERS,
        _each(timed_out="timed_out", worker_died="crashed", over_memory="over_memory"),
        ("reason",),
    ),
    Metric(
        "procbus_queue_seconds",
        "histogram",
        "Time from publishing to the first attempt.",
        _HANDLERS,
        _durations("queue"),
    ),
    Metric(
        "procbus_run_seconds",
        "histogram",
        "Duration of each attempt, successful or not.",
        _HANDLERS,
        _durations("run"),
    ),
    Metric(
        "procbus_lane_queued",
        "gauge",
        "Deliveries that wait for a worker of the lane.",
        _LANES,
        _the("queued"),
    ),
    Metric("procbus_lane_workers", "gauge", "Workers of the lane.", _LANES, _the("workers")),
    Metric(
        "procbus_lane_workers_busy",
        "gauge",
        "Workers of the lane that are in a handler.",
        _LANES,
        _the("busy"),
    ),
    Metric(
        "procbus_lane_workers_stalled",
        "gauge",
        "Workers of the lane that make no progress in a handler.",
        _LANES,
        _the("stalled"),
    ),
    Metric(
        "procbus_lane_worker_restarts_total",
        "counter",
        "Workers of the lane that were replaced.",
        _LANES,
        _the("restarts"),
    ),
    Metric(
        "procbus_lane_abandoned_threads",
        "gauge",
        "Threads left behind in a handler that timed out.",
        _LANES,
        _the("abandoned"),
    ),
    Metric(
        "procbus_lane_utilisation_ratio",
        "gauge",
        "Share of the workers' time that was spent in handlers since the first one started.",
        _LANES,
        _the("used"),
    ),
    Metric(
        "procbus_lane_paused",
        "gauge",
        "1 while the lane begins no delivery: memory is short, the circuit is open, you paused it.",
        _LANES,
        lambda taken: [((), int(taken["paused"]))],
    ),
    Metric(
        "procbus_pending",
        "gauge",
        "Deliveries of the bus that have not ended.",
        _BUS,
        _the("pending"),
    ),
    Metric(
        "procbus_retrying",
        "gauge",
        "Deliveries of the bus that wait for their next attempt.",
        _BUS,
        _the("retrying"),
    ),
    Metric(
        "procbus_events_unrouted_total",
        "counter",
        "Events that had no handler.",
        _BUS,
        _the("unrouted"),
    ),
    Metric(
        "procbus_dead_letters",
        "gauge",
        "Dead letters that the bus keeps.",
        _BUS,
        _the("dead_letters"),
    ),
    Metric(
        "procbus_shared_memory_bytes",
        "gauge",
        "Memory that the bus shares with its workers for large events and results.",
        _BUS,
        _memory,
        ("state",),
    ),
    Metric(
        "procbus_shared_memory_limit_bytes",
        "gauge",
        "Maximum of shared memory; 0 before the first large event.",
        _BUS,
        _the("shared_memory", "limit"),
    ),
    Metric(
        "procbus_shared_memory_sent_bytes_total",
        "counter",
        "Bytes copied to workers through shared memory.",
        _BUS,
        _the("shared_memory", "sent"),
    ),
    Metric(
        "procbus_shared_memory_received_bytes_total",
        "counter",
        "Bytes copied from workers through shared memory.",
        _BUS,
        _the("shared_memory", "received"),
    ),
    Metric(
        "procbus_worker_resident_memory_bytes",
        "gauge",
        "Resident memory of a worker process.",
        _WORKERS,
        _the("memory_bytes"),
    ),
    Metric(
        "procbus_worker_cpu_seconds_total",
        "counter",
        "CPU time of a worker process, from its start.",
        _WORKERS,
        _the("cpu_s"),
    ),
)


# As text.


def exposition(made: Iterable[Family]) -> str:
    """Write families in the text format of Prometheus, version 0.0.4.

    Its content type is `CONTENT_TYPE`.
    """
    lines: list[str] = []
    for family in made:
        metric = family.metric
        name = metric.name
        lines.append(f"# HELP {name} {metric.text}")
        lines.append(f"# TYPE {name} {metric.kind}")
        for values, value in family.samples:
            pairs = zip(metric.labels, values, strict=True)
            labels = ",".join(f'{label}="{_escaped(each)}"' for label, each in pairs)
            if isinstance(value, Buckets):
                lines += [
                    f'{name}_bucket{{{labels},le="{bound}"}} {count}'
                    for bound, count in value.counts
                ]
                lines.append(f"{name}_sum{{{labels}}} {value.total!r}")
                lines.append(f"{name}_count{{{labels}}} {value.counts[-1][1]}")
            else:
                lines.append(f"{name}{{{labels}}} {value!r}")
    return "\n".join(lines) + "\n"


#: The content type of `exposition`.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
