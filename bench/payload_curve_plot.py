"""Draw `payload_curve`: ``python -m bench.payload_curve_plot bench-results.json plot.svg``.

A panel for each kind of payload, as an event on the left and as a result on the right: time for
each by its size, for procbus, its peers, and pickle with shared memory alone. `str` is left out,
because it runs like `bytes`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import plotting
from .model import LIMIT, PROCBUS
from .payload_curve import OPENERS, POINTS
from .payload_curve_work import ARRAY, BYTES, RECORDS
from .plotting import Spread

#: Named as people know them, in the order in which they get their looks.
NAMES = {name: name for name in (PROCBUS, *OPENERS)} | {LIMIT: "pickle and memory alone"}
TITLES = {
    BYTES: "bytes",
    RECORDS: "dict of records (number of records)",
    ARRAY: "NumPy array (bytes)",
}

Points = list[tuple[float, Spread]]


def points_of(rows: dict[str, Any], contender: str, kind: str, *, is_result: bool) -> Points:
    """Return one line: size, and the spread of the time for each event in µs."""
    found = []
    for point in POINTS:
        if point.kind == kind and point.is_result == is_result and point.size:
            figures = rows[point.row]["contenders"].get(contender)
            if figures is not None:
                spread = Spread.of([1e6 / rate for rate in figures["runs"]])
                found.append((float(point.size), spread))
    return found


def draw_kind(axes: Any, rows: dict[str, Any], kind: str, *, is_result: bool) -> None:
    """Draw one panel."""
    looks = plotting.looks_of(list(NAMES))
    lines = {
        name: found for name in NAMES if (found := points_of(rows, name, kind, is_result=is_result))
    }
    if PROCBUS not in lines:
        raise ValueError("these results have no figures of procbus for payload_curve")
    for name in sorted(lines, key=lambda name: name == PROCBUS):  # ours above the others
        # Medians alone: bars for each of hundreds of points would make a file of half a megabyte.
        axes.plot(
            [size for size, _ in lines[name]],
            [spread.middle for _, spread in lines[name]],
            color=looks[name].colour,
            marker=looks[name].marker,
            markersize=4,
            linestyle=looks[name].dashes,
            linewidth=2.4 if name == PROCBUS else 1.4,
            label=NAMES[name],
        )
    plotting.log_axis(axes, "x")
    plotting.log_axis(axes, "y")
    axes.set_title(f"{'results' if is_result else 'events'}: {TITLES[kind]}")


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the plot as SVG.

    Args:
        results: what `python -m bench` wrote, with the answer to `payload_curve`.
        path: of the file.
    """
    rows = results["questions"]["payload_curve"]["rows"]
    with plotting.drawing(columns=2, rows=len(TITLES), height=3.0 * len(TITLES)) as (figure, axes):
        for at, kind in enumerate(TITLES):
            draw_kind(axes[2 * at], rows, kind, is_result=False)
            draw_kind(axes[2 * at + 1], rows, kind, is_result=True)
            axes[2 * at].set_ylabel("µs for each")
        axes[-2].set_xlabel("size (all axes logarithmic)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        plotting.save(figure, path)


def main(results: str, plot: str) -> None:
    """Read the results, write the plot."""
    draw(json.loads(Path(results).read_text()), Path(plot))


if __name__ == "__main__":
    main(*sys.argv[1:])
