"""The plot of `payload_curve`: time for each event or result, by kind and size.

A row of panels for each kind of payload, events on the left and results on the right. `str` is left
out, because it runs like `bytes`. Pools that get one event at a time from one script run so much
alike that they share a band, from the fastest to the slowest of them. joblib is left out: an event
that occurs several times in its chunk is pickled once, as in no real job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import plotting
from .found import Found
from .model import LIMIT, PROCBUS
from .payload_curve import POINTS, POOL_MAP, Point
from .payload_curve_work import ARRAY, BYTES, RECORDS

#: Each kind of payload, with the unit of its sizes.
UNITS = {BYTES: "bytes", RECORDS: "records", ARRAY: "bytes"}
TITLES = {BYTES: "bytes objects", RECORDS: "dicts of records", ARRAY: "NumPy arrays"}
#: Contenders with a line of their own, from the front to the back, with their names in the plot.
LINES = {
    PROCBUS: "procbus",
    LIMIT: "pickle and memory alone",
    "mp.Pool": "mp.Pool.apply_async",
    POOL_MAP: "mp.Pool.map, in chunks",
}
#: Contenders of the band.
BAND = ("ProcessPoolExecutor", "loky", "mpire", "pebble")
BAND_NAME = "ProcessPoolExecutor, loky, mpire, Pebble"

Points = list[tuple[int, float]]


def points_of(found: Found, contender: str, points: Sequence[Point]) -> Points:
    """Return one line: size, and the median of the time for each event in µs."""
    return [
        (point.size, 1e6 / rate)
        for point in points
        if (rate := found.middle(point.row, contender)) is not None
    ]


def draw_band(axes: Any, found: Found, points: Sequence[Point]) -> None:
    """Fill the room between the fastest and the slowest of the pools that run alike."""
    times: dict[int, list[float]] = {}
    for name in BAND:
        for size, time in points_of(found, name, points):
            times.setdefault(size, []).append(time)
    axes.fill_between(
        [*times],
        [*map(min, times.values())],
        [*map(max, times.values())],
        color=plotting.INK,
        alpha=0.35,
        linewidth=0,
        label=BAND_NAME,
    )


def draw_panel(axes: Any, found: Found, kind: str, *, is_result: bool) -> None:
    """Draw one kind of payload, as events or as results."""
    points = [
        point
        for point in POINTS
        if point.kind == kind and point.is_result == is_result and point.size
    ]
    looks = plotting.looks_of(list(LINES))
    draw_band(axes, found, points)
    for name in reversed(LINES):
        if line := points_of(found, name, points):
            axes.plot(
                *zip(*line, strict=True),
                color=looks[name].colour,
                marker=looks[name].marker if name == PROCBUS else None,
                markersize=5,
                linestyle=looks[name].dashes,
                linewidth=2.4 if name == PROCBUS else 1.6,
                label=LINES[name],
            )
    plotting.log_axis(axes, "x")
    plotting.log_axis(axes, "y")
    axes.set_xticks([10**power for power in range(*((0, 5) if kind == RECORDS else (2, 7)), 2)])
    axes.set_xlabel(f"size in {UNITS[kind]}")
    axes.set_title(f"{'Results' if is_result else 'Events'}: {TITLES[kind]}")


def draw_payload_curve(found: Found, _cores: int) -> Any:
    """Draw all panels."""
    with plotting.drawing(columns=2, rows=len(TITLES), height=2.5 * len(TITLES)) as (figure, axes):
        for at, kind in enumerate(TITLES):
            events, results = axes[2 * at : 2 * at + 2]
            draw_panel(events, found, kind, is_result=False)
            draw_panel(results, found, kind, is_result=True)
            events.set_ylabel("µs for each")
            results.set_ylabel("µs for each")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=3, fontsize=9)
    return figure
