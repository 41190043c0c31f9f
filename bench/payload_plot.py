"""Draw the answer to `payload_sizes`: ``python -m bench.payload_plot bench-results.json plot.svg``.

Above: time from publishing an array to the result, by its size, for procbus and its peers. Below:
how much faster it is with shared memory than through the pipe alone, which shows where it pays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import plotting
from .large_contenders import PIPE
from .model import LIMIT, PROCBUS
from .payload_sizes import SHARED, SIZES, row_of
from .plotting import Spread

#: In the order in which they get their looks; named as people know them.
NAMES = {
    PROCBUS: "procbus",
    LIMIT: "one memcpy",
    PIPE: "procbus, pipe alone",
    "loky": "loky",
    "ProcessPoolExecutor": "ProcessPoolExecutor",
    "joblib": "joblib, memmapping",
    "mpire": "mpire",
    "distributed": "Dask",
    "ray": "Ray",
}
FASTEST_MS = 0.02  # what takes less is left out: a memcpy of a few KiB
SHARED_NAME, DEFAULT_NAME = "all from 4 KiB on", "default: from 32 KiB on"

Points = list[tuple[float, Spread]]


def points_of(rows: dict[str, Any], contender: str) -> Points:
    """Return the sizes of one contender's line, with the spread of the times there in ms."""
    found = []
    for size in SIZES:
        figures = rows[row_of(size)]["contenders"].get(contender)
        if figures is not None and figures["median"] >= FASTEST_MS:
            found.append((float(size), Spread.of(figures["runs"])))
    return found


def gains(rows: dict[str, Any], contender: str) -> Points:
    """Return by what factor one contender beats the pipe alone, round by round."""
    found = []
    for size in SIZES:
        contenders = rows[row_of(size)]["contenders"]
        pairs = zip(contenders[PIPE]["runs"], contenders[contender]["runs"], strict=True)
        found.append((float(size), Spread.of([pipe / ours for pipe, ours in pairs])))
    return found


def draw_times(axes: Any, rows: dict[str, Any]) -> None:
    """Draw time by size, for all who were asked."""
    lines = {name: points for name in NAMES if (points := points_of(rows, name))}
    if PROCBUS not in lines:
        raise ValueError("these results have no figures of procbus for payload_sizes")
    looks = plotting.looks_of(list(NAMES))
    for name in sorted(lines, key=lambda name: name == PROCBUS):  # ours above the others
        plotting.line(axes, lines[name], looks[name])
    scale(axes)
    axes.set_yscale("log")
    axes.set_ylim(FASTEST_MS * 0.75, 2000)
    axes.set_yticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])
    axes.set_ylabel("time in ms")
    axes.set_title("From publishing an array to the result of a handler that reads one item")
    ends = {NAMES[n]: (points[-1][0], points[-1][1].middle) for n, points in lines.items()}
    plotting.name_ends(axes, ends, {NAMES[name]: look for name, look in looks.items()})


def draw_gains(axes: Any, rows: dict[str, Any]) -> None:
    """Draw how much faster shared memory is than the pipe alone."""
    names = {PROCBUS: DEFAULT_NAME, SHARED: SHARED_NAME}
    looks = plotting.looks_of(list(names))
    lines = {name: gains(rows, name) for name in names}
    for name, points in lines.items():
        plotting.line(axes, points, looks[name])
    scale(axes)
    axes.axhline(1, color=plotting.INK, lw=1)
    axes.set_yscale("log", base=2)
    axes.set_yticks([0.5, 1, 2, 4, 8, 16, 32], ["½", "1", "2", "4", "8", "16", "32"])
    axes.set_ylabel("times as fast")
    axes.set_xlabel("size of the array in bytes (all axes logarithmic)")
    axes.set_title("procbus with shared memory against its pipe alone")
    ends = {names[n]: (points[-1][0], points[-1][1].middle) for n, points in lines.items()}
    plotting.name_ends(axes, ends, {names[n]: look for n, look in looks.items()}, gap=0.15)


def scale(axes: Any, sizes: Sequence[int] = SIZES) -> None:
    """Make the x axis one of sizes."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes[::3], [row_of(size) for size in sizes[::3]])
    axes.minorticks_off()


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the plot as SVG.

    Args:
        results: what `python -m bench` wrote, with the answer to `payload_sizes`.
        path: of the file.
    """
    rows = results["questions"]["payload_sizes"]["rows"]
    with plotting.drawing(rows=2, height=7.4) as (figure, (above, below)):
        above.get_gridspec().set_height_ratios([5, 2])
        draw_times(above, rows)
        draw_gains(below, rows)
        plotting.save(figure, path)


def main(results: str, plot: str) -> None:
    """Read the results, write the plot."""
    draw(json.loads(Path(results).read_text()), Path(plot))


if __name__ == "__main__":
    main(*sys.argv[1:])
