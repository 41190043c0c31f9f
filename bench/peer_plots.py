"""The plots of the questions about peers: a bar for each, procbus's own filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .found import Found
from .model import LIMIT, PROCBUS
from .plotting import INK, drawing, log_axis, looks_of
from .report import short


def draw_row(
    axes: Any, found: Found, row: str, title: str, unit: str, more_is_better: bool
) -> None:
    """Draw one figure of everybody as horizontal bars, the best on top."""
    there = {name: spread for name in found.contenders if (spread := found.spread(row, name))}
    order = sorted(there, key=lambda name: there[name].middle, reverse=not more_is_better)
    looks = looks_of([PROCBUS, "procbus io", LIMIT, "other"])
    for y, name in enumerate(order):
        spread = there[name]
        look = looks[name] if name in looks else looks["other"]
        axes.barh(
            y,
            spread.middle,
            0.72,
            facecolor=look.colour + ("99" if name.startswith(PROCBUS) else "33"),
            edgecolor=look.colour,
            hatch=look.hatch if name == LIMIT else "",
        )
        axes.annotate(
            short(spread.middle),
            (spread.high, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    spreads = [there[name] for name in order]
    below = [spread.middle - spread.low for spread in spreads]
    above = [spread.high - spread.middle for spread in spreads]
    middles = [spread.middle for spread in spreads]
    axes.errorbar(
        middles, range(len(order)), xerr=[below, above], fmt="none", ecolor=INK, capsize=3, lw=1.2
    )
    axes.set_yticks(range(len(order)), order, fontsize=8)
    for label, name in zip(axes.get_yticklabels(), order, strict=True):
        label.set_fontweight("bold" if name.startswith(PROCBUS) else "normal")
    log_axis(axes, "x")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.18)  # room for the figures
    axes.locator_params(axis="x", numticks=4)  # more numbers would run into each other
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"{unit} ({'more' if more_is_better else 'less'} is better)")
    axes.set_title(title)


def draw_peers(questions: Mapping[str, Found]) -> Any:
    """Draw the results for rates, latency, memory and start."""
    panels = [
        ("tiny_cpu", "tiny cpu handler, int", "Tiny handlers, processes", "events/s", True),
        ("tiny_io", "tiny io handler", "Tiny handlers, this process", "events/s", True),
        ("latency", "publish → result, idle, p50", "Latency, idle, p50", "µs", False),
        (
            *("pending_memory", "memory of the parent for each waiting event"),
            *("Memory of a waiting event", "bytes", False),
        ),
        ("startup", "import, over bare Python", "Import", "ms over bare Python", False),
        (
            *("startup", "bus or pool to first cpu result, fresh process"),
            *("Start to first result", "ms", False),
        ),
    ]
    there = [panel for panel in panels if panel[0] in questions]
    rows = (len(there) + 1) // 2
    with drawing(columns=2, rows=rows, height=3.2 * rows) as (figure, axes):
        for at, (name, row, title, unit, more_is_better) in zip(axes, there, strict=False):
            draw_row(at, questions[name], row, title, unit, more_is_better)
        for unused in axes[len(there) :]:
            unused.set_axis_off()
    return figure
