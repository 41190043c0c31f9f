"""The look of every plot of the benchmarks: on light and dark pages, with and without colours.

The background is transparent, and all ink and colours are of a middle lightness: each has a
contrast of at least 3.9 to white and to GitHub's dark page (#0d1117). Contenders have a colour, a
marker, dashes and a hatch of their own, and lines end in their names: colours are not needed.
matplotlib is imported on first use: a run that takes samples does without it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .model import LIMIT, PROCBUS

INK = "#747a82"
GRID = "#747a8255"
#: Facts that matplotlib would write into each file.
METADATA = ("Creator", "Date", "Format", "Type")
WIDTH = 8.0  # inches of 72 points: what a page of text is wide
NAMES_APART = 0.062  # from one name at the right to the next, in heights of the axes

RC = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # letters stay letters: small files, text that can be searched
    "svg.hashsalt": "procbus",  # the same plot gives the same file
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Look(NamedTuple):
    """How a contender is told from the others in lines (marker, dashes) and bars (hatch)."""

    colour: str
    marker: str
    dashes: Any
    hatch: str


BLUE, ORANGE, GREEN, VIOLET, RED = "#2f81d6", "#c2680f", "#2b9348", "#a064d8", "#d9503f"
OLIVE, PINK = "#8a7a1e", "#d0508f"
LOOKS = {
    PROCBUS: Look(BLUE, "o", "-", ""),
    "procbus cpu": Look(BLUE, "o", "-", ""),
    "procbus io": Look(GREEN, "s", (0, (6, 2)), "//"),
    "thread bus": Look(RED, "^", (0, (3, 2)), "xx"),
    "serial": Look(OLIVE, "D", (0, (8, 2, 2, 2)), "--"),
    LIMIT: Look(INK, "_", (0, (1, 2)), "+"),
}
#: For all others, in the order in which a plot has them.
MORE_LOOKS = (
    Look(ORANGE, "v", (0, (5, 1, 1, 1)), "\\\\"),
    Look(VIOLET, "P", (0, (9, 3)), "////"),
    Look(PINK, "X", (0, (4, 1, 1, 1, 1, 1)), "|-"),
    Look(OLIVE, "<", (0, (2, 1)), "||"),
    Look(RED, ">", (0, (7, 1, 1, 1)), "/"),
    Look(GREEN, "*", (0, (1, 1)), "x"),
    Look(INK, "d", (0, (3, 1)), "---"),
)


def looks_of(contenders: Sequence[str]) -> dict[str, Look]:
    """Give each contender of one plot a look that no other of it has."""
    others = [name for name in contenders if name not in LOOKS]
    free = [look for look in MORE_LOOKS if look not in LOOKS.values()]
    if len(others) > len(free):
        raise ValueError(f"no more than {len(free)} looks for {', '.join(others)}")
    more = dict(zip(others, free, strict=False))
    return {name: LOOKS.get(name) or more[name] for name in contenders}


class Spread(NamedTuple):
    """The median of the rounds with the lowest and the highest."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, runs: Sequence[float]) -> Spread:
        """Take the spread of the rounds' figures."""
        return cls(median(runs), min(runs), max(runs))


@contextmanager
def drawing(
    columns: int = 1, rows: int = 1, height: float = 3.6
) -> Iterator[tuple[Any, list[Any]]]:
    """Give a figure and its axes, row by row; what is drawn in the block has the common look.

    Args:
        columns: axes side by side.
        rows: of axes.
        height: of the whole figure in inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        yield figure, list(axes.flat)


def save(figure: Any, path: Path) -> None:
    """Write the figure as SVG, in less than half the size that matplotlib gives it."""
    import matplotlib as mpl

    written = io.StringIO()
    with mpl.rc_context(RC):
        figure.savefig(written, format="svg", metadata=dict.fromkeys(METADATA))
    path.write_text(compact(written.getvalue()), encoding="utf-8")


def compact(svg: str) -> str:
    """Round coordinates to a tenth of a point, and write each style once, as a class.

    >>> compact('<svg><g id="axes_1"><path d="M 1.25 2.0 L 3.04 4" style="fill: none"/></g></svg>')
    '<svg><style>.a{fill: none}</style><g><path d="M1.2 2L3 4" class="a"/></g></svg>'
    """
    classes: dict[str, str] = {}

    def class_of(style: re.Match[str]) -> str:
        name = classes.setdefault(style[1], letters(len(classes)))
        return f'class="{name}"'

    svg = re.sub(r' (?:d|x|y|transform)="[^"]+"', lambda found: rounded(found[0]), svg)
    svg = re.sub(r'<g id="[^"]+"', "<g", svg)
    svg = re.sub(r"(?<=>)\s+(?=<)", "", svg)
    svg = re.sub(r'style="([^"]+)"', class_of, svg)
    styles = "".join(f".{name}{{{style}}}" for style, name in classes.items())
    return re.sub(
        r"<svg[^>]*>", lambda opening: f"{opening[0]}<style>{styles}</style>", svg, count=1
    )


def rounded(attribute: str) -> str:
    """Round the numbers of one attribute, and leave out blanks that tell nothing.

    >>> rounded(' d="M 0.04 -0.04 L 12.25 100"')
    ' d="M0 0L12.2 100"'
    """

    def number(found: re.Match[str]) -> str:
        text = f"{float(found[0]):.1f}".removesuffix(".0")
        return "0" if text == "-0" else text

    attribute = re.sub(r"-?\d+(?:\.\d+)?", number, attribute)
    return re.sub(r"\s*([MLCQz])\s*", r"\1", attribute)


def letters(number: int) -> str:
    """Name a class.

    >>> letters(0), letters(27)
    ('a', 'ab')
    """
    more, last = divmod(number, 26)
    return (letters(more - 1) if more else "") + "abcdefghijklmnopqrstuvwxyz"[last]


def line(
    axes: Any, points: Sequence[tuple[float, Spread]], look: Look, name: str | None = None
) -> None:
    """Draw one contender's medians as a line, with a bar from the lowest to the highest round.

    Args:
        axes: where.
        points: x and the figure there.
        look: of the contender.
        name: its name for the legend; None where `name_ends` is called.
    """
    xs = [x for x, _ in points]
    middles = [spread.middle for _, spread in points]
    bars = [
        [spread.middle - spread.low for _, spread in points],
        [spread.high - spread.middle for _, spread in points],
    ]
    axes.errorbar(
        xs,
        middles,
        yerr=bars,
        color=look.colour,
        marker=look.marker,
        linestyle=look.dashes,
        elinewidth=1.2,
        capsize=3,
        label=name,
    )


def name_ends(
    axes: Any,
    ends: dict[str, tuple[float, float]],
    looks: dict[str, Look],
    gap: float = NAMES_APART,
) -> None:
    """Write each line's name right of its end, names moved apart. Call it with final limits.

    Args:
        axes: where.
        ends: for each name, the last point of its line.
        looks: of the names.
        gap: from one name to the next, in heights of the axes.
    """
    axes.figure.draw_without_rendering()  # places what the transforms depend on
    to_axes = axes.transAxes.inverted()
    heights = {
        name: float(to_axes.transform(axes.transData.transform(end))[1])
        for name, end in ends.items()
    }
    order = sorted(heights, key=heights.__getitem__)
    for name, height in zip(order, apart([heights[name] for name in order], gap), strict=True):
        axes.annotate(
            name,
            xy=ends[name],
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=looks[name].colour,
            fontweight="bold",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": looks[name].colour, "lw": 0.7, "shrinkB": 4},
        )


def apart(heights: Sequence[float], gap: float = NAMES_APART, top: float = 1.0) -> list[float]:
    """Move heights, given from the lowest up, apart; none above the top where there is room.

    >>> apart([0.0, 0.25, 0.75], gap=0.5)
    [0.0, 0.5, 1.0]
    >>> apart([0.75, 1.0], gap=0.5)
    [0.5, 1.0]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    for at in reversed(range(len(placed))):
        bound = top if at == len(placed) - 1 else placed[at + 1] - gap
        placed[at] = min(placed[at], bound)
    return placed


def log_axis(axes: Any, which: str) -> None:
    """Make one axis logarithmic, with plain numbers at powers of ten and no ticks between.

    Args:
        axes: where.
        which: "x" or "y".
    """
    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{value:,.15g}")
    axis.set_minor_locator(no_ticks())


def no_ticks() -> Any:
    """Return a locator that finds no place for a tick."""
    from matplotlib.ticker import NullLocator

    return NullLocator()


def bars(
    axes: Any,
    groups: Sequence[str],
    figures: Mapping[str, Sequence[Spread | None]],
    looks: Mapping[str, Look],
    text: Any = None,
    log: bool = False,
) -> None:
    """Draw groups of bars, one for each contender, with the spread as a line on each.

    Args:
        axes: where.
        groups: names along the x axis.
        figures: contender to its figure for each group; None where there is none.
        looks: of the contenders.
        text: makes the text above a bar from its median; None for no text.
        log: whether the y axis is logarithmic.
    """
    width = 0.82 / len(figures)
    if log:
        log_axis(axes, "y")
    for at, (name, spreads) in enumerate(figures.items()):
        there = [(group, spread) for group, spread in enumerate(spreads) if spread is not None]
        xs = [group + (at - (len(figures) - 1) / 2) * width for group, _ in there]
        middles = [spread.middle for _, spread in there]
        axes.bar(
            xs,
            middles,
            width * 0.9,
            label=name,
            facecolor=looks[name].colour + "55",
            edgecolor=looks[name].colour,
            hatch=looks[name].hatch,
            linewidth=1.2,
        )
        low = [spread.middle - spread.low for _, spread in there]
        high = [spread.high - spread.middle for _, spread in there]
        axes.errorbar(xs, middles, yerr=[low, high], fmt="none", ecolor=INK, capsize=3, lw=1.2)
        if text is not None:
            for x, (_, spread) in zip(xs, there, strict=True):
                axes.annotate(
                    text(spread.middle),
                    (x, spread.high),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7.5,
                )
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
