"""The plots of the questions about the GIL: one function for each, from results to axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from . import convoy, crossover, io_scaling, pipelines, python_probe
from .found import Found
from .io_work import IO_KINDS
from .model import LIMIT, PROCBUS, PROCBUS_CPU, PROCBUS_IO
from .payload_curve_plot import draw_payload_curve
from .plotting import (
    INK,
    MORE_LOOKS,
    Spread,
    bars,
    drawing,
    line,
    log_axis,
    looks_of,
    name_ends,
    no_ticks,
)
from .report import short

#: Names of contenders in a plot, if their own names say too little there.
NAMES = {LIMIT: "limit", "thread bus": "thread-pool bus"}


def name_of(contender: str, names: Mapping[str, str] = NAMES) -> str:
    """Return the name of a contender in a plot."""
    return names.get(contender, contender)


def lines(
    axes: Any,
    found: Found,
    rows: Mapping[Any, str],
    contenders: Sequence[str],
) -> dict[str, tuple[float, float]]:
    """Draw a line for each contender over the rows; return where each ends, by its name."""
    looks = looks_of(contenders)
    ends = {}
    for contender in contenders:
        points = [
            (x, spread)
            for x, row in rows.items()
            if (spread := found.spread(row, contender)) is not None
        ]
        if points:
            line(axes, points, looks[contender], name_of(contender))
            ends[name_of(contender)] = (points[-1][0], points[-1][1].middle)
    return ends


def name_lines(axes: Any, ends: dict[str, tuple[float, float]], contenders: Sequence[str]) -> None:
    """Write the names at the ends of the lines."""
    looks = {name_of(name): look for name, look in looks_of(contenders).items()}
    name_ends(axes, ends, looks)


def legend(figure: Any, axes: Any, columns: int = 4) -> None:
    """Put one legend for all axes above them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9)


def draw_cpu_scaling(found: Found, cores: int) -> Any:
    """Speed-up, and efficiency: the share of the cores that were there for the workers."""
    counts = {int(row.split()[0]): row for row in found.rows}
    order = [*found.own]
    order.sort(key=lambda name: (name != LIMIT, name))
    with drawing(columns=2, height=3.6) as (figure, (left, right)):
        lines(left, found, counts, order)
        left.set_title("Speed-up over a plain loop")
        left.set_ylabel("times as fast as the loop")
        looks = looks_of(order)
        efficient: dict[str, tuple[float, float]] = {}
        for name in order:
            points = []
            for count, row in counts.items():
                if (spread := found.spread(row, name)) is not None:
                    share = 100 / min(count, cores)
                    points.append((count, Spread(*(share * value for value in spread))))
            line(right, points, looks[name])
            efficient[name_of(name)] = (points[-1][0], points[-1][1].middle)
        right.set_title("Efficiency")
        right.set_ylabel("% of the cores that workers may use")
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(counts), [str(count) for count in counts])
            axes.set_xlabel(f"workers (this machine has {cores} cores)")
            axes.axvline(cores, color=INK, lw=1, ls=":")
            axes.set_ylim(bottom=0)
        name_lines(right, efficient, order)
    return figure


def draw_io_scaling(found: Found, _cores: int) -> Any:
    """Rates by how many are under way, for each kind of waiting; the memory of the most."""
    order = [name for name in found.own if name != LIMIT] + [LIMIT]
    with drawing(columns=2, rows=2, height=6.4) as (figure, axes):
        for at, kind in zip(axes, IO_KINDS, strict=False):
            rows = {n: io_scaling.row_of(kind, n) for n in io_scaling.CONCURRENT}
            lines(at, found, rows, order)
            at.set_title(kind)
            at.set_xscale("log", base=2)
            log_axis(at, "y")
            at.set_xticks(list(rows), [str(count) for count in rows])
            at.set_xlabel("handlers under way at a time")
            at.set_ylabel("events per second")
        row = io_scaling.MEMORY.format(io_scaling.CONCURRENT[-1])
        values = {name_of(name): [found.spread(row, name)] for name in order}
        looks = {name_of(name): look for name, look in looks_of(order).items()}
        bars(axes[3], [""], values, looks, text=short, log=True)
        axes[3].set_title(f"Memory for {io_scaling.CONCURRENT[-1]} sleeps at a time")
        axes[3].set_ylabel("MB")
        legend(figure, axes[0])
    return figure


CONVOY_NAMES = {
    PROCBUS: "cpu work on the cpu lane",
    PROCBUS_IO: "cpu work on the io lane",
    "thread bus": "all on the thread-pool bus",
    "loky": "threads beside loky",
    LIMIT: "limit: beside bare processes",
}


def draw_convoy(found: Found, _cores: int) -> Any:
    """Percentiles of the latency, for both switch intervals."""
    order = [name for name in CONVOY_NAMES if name in found.contenders]
    looks = {CONVOY_NAMES[name]: look for name, look in looks_of(order).items()}
    with drawing(rows=2, height=5.6) as (figure, axes):
        for at, interval in zip(axes, convoy.INTERVALS_MS, strict=True):
            values = {
                CONVOY_NAMES[name]: [
                    in_ms(found.spread(convoy.row_of(percentile, interval), name))
                    for percentile in convoy.PERCENTILES
                ]
                for name in order
            }
            bars(at, list(convoy.PERCENTILES), values, looks, text=short, log=True)
            at.set_title(f"Latency of an io handler, switch interval {interval:g} ms")
            at.set_ylabel("ms, publish to handler")
            at.set_ylim(top=at.get_ylim()[1] * 2)
        legend(figure, axes[0], columns=3)
    return figure


def in_ms(spread: Spread | None) -> Spread | None:
    """Turn µs into ms."""
    return None if spread is None else Spread(*(value / 1e3 for value in spread))


def draw_gil_release(found: Found, cores: int) -> Any:
    """Speed-up of each kind of code."""
    order = [LIMIT, *(name for name in found.own if name != LIMIT)]
    looks = {name_of(name): look for name, look in looks_of(order).items()}
    values = {name_of(name): [found.spread(row, name) for row in found.rows] for name in order}
    groups = [
        fill(row, 13, break_long_words=False)
        + "\n("
        + ("keeps" if "keeps" in found.units[row] else "releases")
        + ")"
        for row in found.rows
    ]
    with drawing(height=4.2) as (figure, (axes,)):
        bars(axes, groups, values, looks)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title("Code that keeps the GIL, and code that releases it")
        axes.set_ylabel("times as fast as a plain loop")
        axes.axhline(1, color=INK, lw=1, ls=":")
        axes.axhline(cores, color=INK, lw=1, ls=":")
        legend(figure, axes)
    return figure


def draw_crossover(found: Found, _cores: int) -> Any:
    """Speed-up by the length of the handler."""
    rows = {float(length): crossover.row_of(length) for length in crossover.LENGTHS_US}
    order = [LIMIT, *(name for name in found.own if name != LIMIT)]
    with drawing(height=4.2) as (figure, (axes,)):
        ends = lines(axes, found, rows, order)
        axes.set_xscale("log")
        log_axis(axes, "y")
        axes.set_xticks(list(rows), list(rows.values()))
        axes.xaxis.set_minor_locator(no_ticks())
        axes.axhline(1, color=INK, lw=1, ls=":")
        axes.set_xlabel("length of the handler, pure Python")
        axes.set_ylabel("times as fast as a plain loop")
        axes.set_title("From which length on does another process pay?")
        name_lines(axes, ends, order)
    return figure


PIPELINE_NAMES = {
    PROCBUS: "procbus, both lanes",
    PROCBUS_IO: "procbus, all on threads",
    PROCBUS_CPU: "procbus, reading and parsing on processes",
    "thread bus": "thread-pool bus",
    "ProcessPoolExecutor": "ProcessPoolExecutor",
    LIMIT: "limit: the cpu work alone, bare processes",
}


def draw_pipelines(found: Found, _cores: int) -> Any:
    """Seconds that each way takes over each job."""
    order = [name for name in PIPELINE_NAMES if name in found.contenders]
    looks = {PIPELINE_NAMES[name]: look for name, look in looks_of(order).items()}
    looks[PIPELINE_NAMES[PROCBUS_CPU]] = MORE_LOOKS[1]  # its own is that of the cpu lane
    jobs = (pipelines.INDEX, pipelines.LOGS)
    values = {PIPELINE_NAMES[name]: [found.spread(job, name) for job in jobs] for name in order}
    with drawing(height=4.0) as (figure, (axes,)):
        bars(axes, jobs, values, looks, text=short)
        axes.set_ylabel("seconds, workers' start included")
        axes.set_title("Two whole jobs")
        legend(figure, axes, columns=2)
    return figure


#: The ways that the plot of the Pythons shows; `cpu="auto"` runs like one of two others.
WAYS_SHOWN = tuple(way for way in python_probe.WAYS if way != python_probe.LANE_AUTO)
PANELS_ABREAST = 4


def draw_pythons(found: Found, cores: int) -> Any:
    """Speed-ups by the length of the handler: a panel for each interpreter."""
    versions = sorted(name for name in found.contenders if name != LIMIT)
    lengths = {length_ms * 1e3: name for name, length_ms in python_probe.LENGTHS_MS.items()}
    looks = looks_of(WAYS_SHOWN)
    rows = -(-len(versions) // PANELS_ABREAST) or 1
    named = set()
    with drawing(columns=PANELS_ABREAST, rows=rows, height=0.8 + 2.0 * rows) as (figure, axes):
        for at, version in zip(axes, versions, strict=False):
            for way in WAYS_SHOWN:
                points = [
                    (length_us, spread)
                    for length_us, length in lengths.items()
                    if (spread := found.spread(python_probe.row_of(way, length), version))
                ]
                if points:
                    line(at, points, looks[way], None if way in named else way)
                    named.add(way)
            at.set_xscale("log")
            at.set_xticks(list(lengths), list(lengths.values()))
            at.xaxis.set_minor_locator(no_ticks())
            at.set_ylim(0, 1.15 * cores)
            at.axhline(1, color=INK, lw=1, ls=":")
            at.axhline(cores, color=INK, lw=1, ls=":")
            at.set_title(f"CPython {version}", fontsize=10)
            at.set_ylabel("times a loop", fontsize=9)
        for at in axes[len(versions) :]:
            at.remove()
        figure.supxlabel(
            f"length of the handler, pure Python, {cores} workers", color=INK, fontsize=10
        )
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
    return figure


GIL_PLOTS = {
    "cpu_scaling": draw_cpu_scaling,
    "io_scaling": draw_io_scaling,
    "convoy": draw_convoy,
    "gil_release": draw_gil_release,
    "crossover": draw_crossover,
    "payload_curve": draw_payload_curve,
    "pipelines": draw_pipelines,
    "pythons": draw_pythons,
}
