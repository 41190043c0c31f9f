"""Draw the answer to `payload_sizes`: ``python -m bench.payload_plot bench-results.json plot.svg``.

The drawing is written as plain SVG: its colours follow the reader's light or dark mode, and each
line has marks, dashes and a name of its own, so that nobody needs the colours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from html import escape
from math import log2, log10
from pathlib import Path
from typing import Any, NamedTuple

from .model import LIMIT, PROCBUS
from .payload_sizes import SIZES, row_of

WIDTH, HEIGHT = 860, 560
LEFT, RIGHT, TOP, BOTTOM = 78, 662, 54, 492
NAMES = 692  # where they begin, with their marks
SLOWEST_MS, FASTEST_MS = 3_000.0, 0.01  # what is outside is left out
NAMES_APART = 17.0  # from one name at the right to the next


class Style(NamedTuple):
    """How the line of one contender looks: its name, its dashes, the shape of its marks."""

    name: str
    dashes: str
    mark: str


STYLES = {
    PROCBUS: Style("procbus", "", "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z"),
    "pipe alone": Style("procbus, pipe alone", "7 4", "M-4 -4h8v8h-8z"),
    LIMIT: Style("one memcpy", "2 3", "M-4 0h8"),
    "loky": Style("loky", "12 4", "M0 -5l5 9h-10z"),
    "ProcessPoolExecutor": Style("ProcessPoolExecutor", "9 3 2 3", "M0 5l5 -9h-10z"),
    "joblib": Style("joblib, memmapping", "4 4", "M0 -5l5 5l-5 5l-5 -5z"),
    "mpire": Style("mpire", "1 4", "M-4 -4l8 8M-4 4l8 -8"),
    "distributed": Style("Dask", "14 3 2 3 2 3", "M0 -5v10M-5 0h10"),
    "ray": Style("Ray", "5 2", "M-4 -4h8l-8 8h8z"),
}
SHAPES = """
  text { font: 13px system-ui, sans-serif; }
  .line, .lead, .grid { fill: none; stroke-width: 1.5; }
  .lead, .grid { stroke-width: 0.8; }
  .mark { stroke-width: 1.5; }
  .line.ours { stroke-width: 3; }
  text.ours { font-weight: bold; }
"""
# Background, ink, grid, lines of others, our line.
LIGHT = ("#ffffff", "#1f2328", "#d0d7de", "#57606a", "#0550ae")
DARK = ("#0d1117", "#e6edf3", "#30363d", "#9ea7b3", "#79c0ff")


def colours(back: str, ink: str, faint: str, quiet: str, ours: str) -> str:
    """Return the rules of one mode."""
    return f"""
  .back {{ fill: {back}; }}
  text {{ fill: {ink}; }}
  .grid {{ stroke: {faint}; }}
  .line, .lead {{ stroke: {quiet}; }}
  .mark {{ fill: {back}; stroke: {quiet}; }}
  .line.ours {{ stroke: {ours}; }}
  .mark.ours {{ fill: {ours}; stroke: {ours}; }}
  text.ours {{ fill: {ours}; }}
"""


STYLESHEET = (
    SHAPES + colours(*LIGHT) + "@media (prefers-color-scheme: dark) {" + colours(*DARK) + "}"
)


def across(size: float) -> float:
    """Where a size in bytes is, from the left."""
    return LEFT + (RIGHT - LEFT) * log2(size / SIZES[0]) / log2(SIZES[-1] / SIZES[0])


def down(ms: float) -> float:
    """Where a time in ms is, from the top."""
    return TOP + (BOTTOM - TOP) * log10(SLOWEST_MS / ms) / log10(SLOWEST_MS / FASTEST_MS)


def points_of(rows: dict[str, Any], contender: str) -> list[tuple[float, float]]:
    """Return the points of one contender's line that are within the plot."""
    found = []
    for size in SIZES:
        figures = rows[row_of(size)]["contenders"].get(contender)
        if figures is not None and FASTEST_MS <= figures["median"] <= SLOWEST_MS:
            found.append((across(size), down(figures["median"])))
    return found


def spread(heights: Sequence[float]) -> list[float]:
    """Move names that are too near to each other apart; they are given, and come, from the top.

    >>> spread([10.0, 12.0, 100.0])
    [10.0, 27.0, 100.0]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + NAMES_APART) if placed else height)
    return placed


def grid() -> list[str]:
    """Draw the axes with their units."""
    drawn = []
    for size in SIZES[::2]:
        x = across(size)
        drawn.append(f'<path class="grid" d="M{x:.1f} {TOP}V{BOTTOM}"/>')
        drawn.append(
            f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle" '
            f'style="font-size:11px">{row_of(size)}</text>'
        )
    ms = FASTEST_MS
    while ms <= SLOWEST_MS * 1.01:
        y = down(ms)
        name = f"{ms:g} ms" if ms >= 1 else f"{ms * 1000:g} µs"
        drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
        ms = round(ms * 10, 6)
    middle = (LEFT + RIGHT) / 2
    drawn.append(
        f'<text x="{middle}" y="{BOTTOM + 46}" text-anchor="middle">'
        "size of the array (both axes logarithmic)</text>"
    )
    return drawn


def mark(x: float, y: float, contender: str) -> str:
    """Draw one contender's mark."""
    ours = " ours" if contender == PROCBUS else ""
    shape = STYLES[contender].mark
    return f'<path class="mark{ours}" transform="translate({x:.1f} {y:.1f})" d="{shape}"/>'


def line(points: Sequence[tuple[float, float]], contender: str) -> list[str]:
    """Draw one contender's line, with a mark at each size."""
    ours = " ours" if contender == PROCBUS else ""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = STYLES[contender].dashes
    return [
        f'<path class="line{ours}" stroke-dasharray="{dashes}" d="{path}"/>',
        *(mark(x, y, contender) for x, y in points),
    ]


def draw(results: dict[str, Any]) -> str:
    """Return the plot as SVG.

    Args:
        results: what `python -m bench` wrote, with the answer to `payload_sizes`.
    """
    rows = results["questions"]["payload_sizes"]["rows"]
    lines = {name: points for name in STYLES if (points := points_of(rows, name))}
    if PROCBUS not in lines:
        raise ValueError("these results have no figures of procbus for payload_sizes")
    order = sorted(lines, key=lambda name: lines[name][-1][1])
    heights = spread([lines[name][-1][1] for name in order])
    drawn = grid()
    for name in sorted(lines, key=lambda name: name == PROCBUS):  # ours above the others
        drawn += line(lines[name], name)
    for name, height in zip(order, heights, strict=True):
        (x, y), ours = lines[name][-1], " ours" if name == PROCBUS else ""
        drawn += [
            f'<path class="lead" d="M{x + 7:.1f} {y:.1f}L{NAMES - 8} {height:.1f}"/>',
            mark(NAMES, height, name),
            f'<text class="name{ours}" x="{NAMES + 11}" y="{height + 4:.1f}">'
            f"{escape(STYLES[name].name)}</text>",
        ]
    title = "Time from publishing an array to the result of a handler that looks at one element"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{title}, by its size</title>",
            f"<style>{STYLESHEET}</style>",
            f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
            f'<text x="{LEFT}" y="28" style="font-size:15px">{title}</text>',
            *drawn,
            "</svg>\n",
        ]
    )


def main(results: str, plot: str) -> None:
    """Read the results, write the plot."""
    Path(plot).write_text(draw(json.loads(Path(results).read_text())), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
