# SPDX-License-Identifier: MIT
"""Progress in a terminal: bars with aligned columns, and below them the lanes of their bus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from procbus.progress.bar import (
    Bar,
    LaneCounts,
    Reading,
    count_text,
    end_text,
    rate_text,
    time_text,
)
from procbus.progress.screen import LastLines

#: Interval between two refreshes, in seconds; because a person sees no more.
DRAW_EVERY_S = 0.1
#: Minimum and maximum width of a bar, in characters.
_NARROWEST, _WIDEST = 10, 40
#: The characters for the done part of a bar and for the rest: in a terminal that shows Unicode, and
#: in any other terminal.
_LINES = "\u2501", "\u2500"
_ASCII = "#", "-"
#: Maximum of lines for running handlers of one bus, each with its own progress.
_MOST_NOTES = 8

#: The columns beside the bar, in the order in which they give way in a narrow terminal.
_Columns = dict[str, Callable[[Reading], str]]
_COLUMNS: _Columns = {
    "count": count_text,
    "part": lambda reading: "" if reading.part is None else f"{reading.part:.0%}",
    "rate": lambda reading: rate_text(reading.rate),
    "end": end_text,
    "failed": lambda reading: f"{reading.failed:,} failed",
}
_GIVE_WAY = ("part", "rate", "end")


class TerminalDisplay:
    """Draws all bars of the script as the last lines of a terminal.

    Args:
        stream: stderr.
    """

    every_s = DRAW_EVERY_S

    def __init__(self, stream: TextIO) -> None:
        self.screen = LastLines(stream)

    def refresh(self, bars: Sequence[Bar]) -> None:
        """Draw all bars."""
        console = Console(file=self.screen.stream)
        lines = lines_of(console, [(bar, bar.read()) for bar in bars])
        self.screen.draw(lines[: max(1, console.height - 1)])

    def finish(self, bar: Bar) -> None:
        """Leave the last figures of a bar where they are; the other bars are soon drawn below."""
        console = Console(file=self.screen.stream)
        self.screen.leave(lines_of(console, [(bar, bar.read_last())], last=True))

    def close(self) -> None:
        """Give the terminal back."""
        self.screen.release()


def lines_of(
    console: Console, bars: Sequence[tuple[Bar, Reading]], *, last: bool = False
) -> list[str]:
    """The lines of bars, each with its colours; bars of one bus stand together.

    Args:
        console: knows the width and the colours of the terminal.
        bars: the bars.
        last: whether these are the last figures of their bars.
    """
    by_bus: dict[int, list[tuple[Bar, Reading]]] = {}
    for bar, reading in bars:
        by_bus.setdefault(id(bar.bus), []).append((bar, reading))
    width = console.width - 1  # text in the last column may move the cursor
    marks = _LINES if console.encoding.startswith("utf") else _ASCII
    rows = iter(_rows([reading for _, reading in bars], width, marks, last))
    text = Text()
    for its in by_bus.values():
        lines = [next(rows) for _ in its]
        _, reading = its[-1]
        if reading.lanes:
            lines.append(Text("  " + "    ".join(map(_lane_text, reading.lanes)), style="dim"))
        lines += [Text(f"  {note}") for note in reading.notes[:_MOST_NOTES]]
        if (more := len(reading.notes) - _MOST_NOTES) > 0:
            lines.append(Text(f"  and {more} more"))
        for line in lines:
            line.truncate(width)
            text.append_text(line).append("\n")
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get().splitlines()


def _lane_text(lane: LaneCounts) -> str:
    return f"{lane.kind} {lane.running:>3,} running {lane.queued:>7,} queued"


def _rows(
    readings: Sequence[Reading], width: int, marks: tuple[str, str], last: bool
) -> list[Text]:
    """A row for each bar, with as many columns as the width has room for."""
    columns = dict(_COLUMNS)
    if last:
        columns["end"] = lambda reading: f"in {time_text(reading.elapsed_s)}"
    labels = [reading.label for reading in readings]
    label_width = min(max(map(cell_len, labels)), max(8, width // 4))
    for leaving in ("", *_GIVE_WAY):
        columns.pop(leaving, None)
        cells = [[cell(reading) for cell in columns.values()] for reading in readings]
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        bar_width = width - label_width - sum(widths) - 2 * (1 + len(widths))
        if bar_width >= _NARROWEST:
            break
    bar_width = max(1, min(bar_width, _WIDEST))
    rows = []
    for reading, row in zip(readings, cells, strict=True):
        line = Text(set_cell_size(reading.label, label_width) + "  ")
        _add_bar(line, reading, bar_width, marks)
        for cell, cell_width in zip(row, widths, strict=True):
            line.append("  " + " " * (cell_width - cell_len(cell)))
            line.append(cell, "red" if reading.failed and cell is row[-1] else "")
        rows.append(line)
    return rows


def _add_bar(line: Text, reading: Reading, width: int, marks: tuple[str, str]) -> None:
    full, rest = marks
    part = reading.part
    if part is None:  # a piece that goes to and fro
        piece = max(1, width // 5)
        steps = width - piece
        before = steps - abs(int(reading.elapsed_s * 10) % (2 * steps or 1) - steps)
        line.append(rest * before, "bar.back")
        line.append(full * piece, "bar.pulse")
        line.append(rest * (width - before - piece), "bar.back")
        return
    filled = int(part * width)
    line.append(full * filled, "bar.finished" if part >= 1 else "bar.complete")
    line.append(rest * (width - filled), "bar.back")
