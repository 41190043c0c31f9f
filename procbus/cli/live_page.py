# SPDX-License-Identifier: MIT
"""A snapshot of a bus as lines of text, for a terminal of any size."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from procbus.core.text import seconds, share
from procbus.core.validation import format_size

cells: Any
try:
    cells = import_module("rich.cells")
except ImportError:  # without the extra `rich` a character counts as one cell
    cells = None

#: Minimum width of a column of text, and of a column of names or notes, in cells.
_LEAST = 10
_LEAST_WIDE = 24
#: Minimum number of rows of a section that is cut.
_ROWS = 3


class Row(NamedTuple):
    """One line. Its key names the worker, dead letter or lane that it shows; None for none."""

    text: str
    style: str = ""
    key: tuple[str, str] | None = None


class Column(NamedTuple):
    """One column of a table: its head, and its rank.

    In a narrow table, columns of the highest rank are left out first. A name that is too long loses
    its beginning; other text loses its end.
    """

    head: str
    rank: int = 0
    left: bool = False
    name: bool = False
    least: int = _LEAST


class Section(NamedTuple):
    """A part of the page: its head, its rows, and a last line."""

    head: str
    rows: Sequence[Row]
    rest: str = ""


def page(
    snapshot: dict[str, Any],
    width: int,
    height: int | None = None,
    cursor: tuple[str, str] | None = None,
) -> list[Row]:
    """Draw a snapshot.

    Args:
        snapshot: as `Snapshots.take` makes it.
        width: number of cells of a line.
        height: maximum number of lines; None for no maximum.
        cursor: the key of a row that must be among these lines.
    """
    lines = _title(snapshot, width)
    sections = [
        section
        for section in (
            _lanes(snapshot, width),
            _handlers(snapshot, width),
            _workers(snapshot, width),
            _letters(snapshot, width),
            _advice(snapshot, width),
        )
        if section.rows
    ]
    room = _rooms(sections, None if height is None else height - len(lines))
    for section, rows in zip(sections, room, strict=True):
        if not rows:
            continue
        lines += [Row(""), Row(section.head, "head"), *_cut(section, rows, cursor)]
    return [row._replace(text=_fit(row.text, width)) for row in lines[:height]]


def keys(snapshot: dict[str, Any]) -> list[tuple[str, str]]:
    """The keys of all rows, from top to bottom."""
    return [row.key for row in page(snapshot, 200) if row.key is not None]


def _rooms(sections: Sequence[Section], height: int | None) -> list[int]:
    """The number of lines that each section has for its rows."""
    wanted = [len(section.rows) + bool(section.rest) for section in sections]
    if height is None or height >= sum(wanted) + 2 * len(sections):
        return wanted
    given = [0] * len(sections)
    left = height
    for number, lines in enumerate(wanted):
        least = min(lines, _ROWS)
        if left >= 2 + least:
            given[number] = least
            left -= 2 + least
    while left > 0:
        short = [n for n, lines in enumerate(wanted) if 0 < given[n] < lines]
        if not short:
            break
        for number in short[:left]:
            given[number] += 1
        left -= len(short[:left])
    return given


def _cut(section: Section, room: int, cursor: tuple[str, str] | None) -> list[Row]:
    """The rows of a section for which there is room, among them the row with the cursor."""
    rows = list(section.rows)
    rest = [Row(section.rest, "dim")] if section.rest else []
    if len(rows) + len(rest) <= room:
        return rows + rest
    most = room - 1
    at = next((number for number, row in enumerate(rows) if cursor and row.key == cursor), 0)
    first = max(0, at - most + 1)
    hidden = len(rows) - most
    return [*rows[first : first + most], Row(f"... and {hidden} more", "dim")]


def _fit(text: str, width: int) -> str:
    return text.rstrip() if _cell_len(text) <= width else _set_cell_size(text, width)


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> tuple[str, list[str]]:
    """Lay out a table: columns are left out, and text is cut, until the table fits.

    Args:
        columns: the columns.
        rows: the cells of each row.
        width: maximum width, in cells.

    Returns:
        The head, and the line of each row.
    """
    kept = list(range(len(columns)))
    widths = [
        max(_cell_len(column.head), *(_cell_len(row[number]) for row in rows), 1)
        for number, column in enumerate(columns)
    ]

    def least(number: int) -> int:
        if not columns[number].left:
            return widths[number]
        return min(widths[number], _LEAST_WIDE if columns[number].name else columns[number].least)

    def gaps() -> int:
        return 2 * (len(kept) - 1)

    while sum(map(least, kept)) + gaps() > width:
        last = max(kept, key=lambda number: columns[number].rank)
        if not columns[last].rank:
            break
        kept.remove(last)
    excess = sum(widths[number] for number in kept) + gaps() - width
    while excess > 0:
        widest = max(kept, key=lambda number: widths[number] - least(number))
        spare = widths[widest] - least(widest)
        if spare <= 0:
            break
        # One cell at a time, so that two long columns share the loss.
        widths[widest] -= 1
        excess -= 1

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            _cell(cells[number], widths[number], columns[number]) for number in kept
        ).rstrip()

    return line([column.head for column in columns]), [line(row) for row in rows]


def _cell(text: str, width: int, column: Column) -> str:
    size = _cell_len(text)
    if size > width and column.name:
        while _cell_len(text) > width - 2:
            text = text[1:]
        return _cell(f"..{text}", width, column)
    if size > width:
        return f"{_set_cell_size(text, max(0, width - 2))}.."
    return text + " " * (width - size) if column.left else " " * (width - size) + text


def _name(name: str) -> str:
    """The name of a handler, without the module of the script."""
    return name.removeprefix("__main__.")


# The sections.


def _title(snapshot: dict[str, Any], width: int) -> list[Row]:
    bus = snapshot["bus"]
    name = bus["pid"] if bus["number"] == 1 else f"{bus['pid']}-{bus['number']}"
    facts = [
        f"procbus {name}",
        bus["script"],
        f"up {age(bus['age_s'])}",
        f"{snapshot['pending']:,} of {snapshot['max_pending']:,} pending",
    ]
    if snapshot["retrying"]:
        facts.append(f"{snapshot['retrying']:,} to be tried again")
    if snapshot["unrouted"]:
        facts.append(f"{snapshot['unrouted']:,} without a handler")
    if bus["journal"]:
        facts.append(f"journal {bus['journal']}")
    if bus["state"] != "open":
        facts.append(bus["state"])
    lines: list[str] = []
    for fact in facts:
        if lines and _cell_len(lines[-1]) + 3 + _cell_len(fact) <= width:
            lines[-1] += f"   {fact}"
        else:
            lines.append(fact)
    return [Row(line, "title") for line in lines]


def _lanes(snapshot: dict[str, Any], width: int) -> Section:
    lanes = [lane for lane in snapshot["lanes"] if lane["workers"] or lane["queued"]]
    columns = [
        *(Column("lane", left=True), Column("queued"), Column("workers"), Column("busy")),
        *(Column("used", 1), Column("restarts", 2), Column("left behind", 3)),
        Column("paused", left=True),
    ]
    head, lines = table(
        columns,
        [
            (
                lane["kind"],
                f"{lane['queued']:,}",
                f"{lane['workers']:,}",
                f"{lane['busy']:,}",
                share(lane["used"]),
                f"{lane['restarts']:,}",
                f"{lane['abandoned']:,}",
                lane["paused"],
            )
            for lane in lanes
        ],
        width,
    )
    return Section(
        head if any(lane["paused"] for lane in lanes) else head.removesuffix("paused").rstrip(),
        [
            Row(line, "bad" if lane["paused"] else "", ("lane", lane["kind"]))
            for line, lane in zip(lines, lanes, strict=True)
        ],
    )


def _handlers(snapshot: dict[str, Any], width: int) -> Section:
    columns = [
        *(Column("handler", left=True, name=True), Column("kind", 3, left=True), Column("rate")),
        *(Column("pending"), Column("running", 2), Column("succeeded", 1), Column("failed")),
        *(Column("retried", 6), Column("queue p50", 4), Column("queue p99", 7)),
        *(Column("run p50", 5), Column("run p99", 8)),
    ]
    handlers = snapshot["handlers"]
    head, lines = table(
        columns,
        [
            (
                _name(each["name"]),
                each["kind"],
                rate(each["rate"]),
                f"{each['pending']:,}",
                f"{each['running']:,}",
                f"{each['succeeded']:,}",
                f"{each['failed']:,}",
                f"{each['retried']:,}",
                seconds(each["queue_s"]["p50"]),
                seconds(each["queue_s"]["p99"]),
                seconds(each["run_s"]["p50"]),
                seconds(each["run_s"]["p99"]),
            )
            for each in handlers
        ],
        width,
    )
    left_out = snapshot["handlers_left_out"]
    return Section(
        head,
        [
            Row(line, "bad" if each["failed"] else "")
            for line, each in zip(lines, handlers, strict=True)
        ],
        f"... and {left_out} more handlers" if left_out else "",
    )


def _workers(snapshot: dict[str, Any], width: int) -> Section:
    workers = [
        each for each in snapshot["workers"] if each["kind"] == "cpu" or each["state"] != "idle"
    ]
    idle = len(snapshot["workers"]) - len(workers)
    columns = [
        *(Column("worker", 3, left=True), Column("pid", 2), Column("state", left=True)),
        *(Column("handler", left=True, name=True), Column("event", 4), Column("since")),
        *(
            Column("progress", 1, left=True, least=_LEAST_WIDE),
            Column("memory", 5),
            Column("cpu", 6),
        ),
        Column("done", 7),
    ]
    head, lines = table(
        columns,
        [
            (
                each["name"].removeprefix("procbus-"),
                f"{each['pid'] or ''}",
                each["state"],
                _name(each["handler"] or ""),
                f"{each['event_id'] or ''}",
                "" if each["running_s"] is None else seconds(each["running_s"]),
                "" if each["progress"] is None else each["progress"]["text"],
                "" if each["memory_bytes"] is None else format_size(each["memory_bytes"]),
                share(each["cpu_share"]),
                f"{each['events_done']:,}",
            )
            for each in workers
        ],
        width,
    )
    rest = [f"{idle} idle thread{'s' if idle > 1 else ''}"] if idle else []
    if snapshot["workers_left_out"]:
        rest.append(f"{snapshot['workers_left_out']} more workers")
    return Section(
        head,
        [
            Row(line, _WORKER_STYLES.get(each["state"], ""), ("worker", each["name"]))
            for line, each in zip(lines, workers, strict=True)
        ],
        ", ".join(rest),
    )


_WORKER_STYLES = {"stalled": "bad", "dead": "bad", "stopped": "bad", "idle": "dim"}


def _letters(snapshot: dict[str, Any], width: int) -> Section:
    letters = snapshot["dead_letters"]
    columns = [
        *(Column("dead letter", left=True, name=True), Column("event", left=True)),
        *(Column("error", left=True), Column("attempts", 2), Column("age", 1)),
    ]
    head, lines = table(
        columns,
        [
            (
                f"{each['event_id']} {_name(each['handler'])}",
                each["event"] if each["topic"] is None else f"{each['topic']} {each['event']}",
                each["error"],
                f"{each['attempts']}",
                age(max(0.0, snapshot["at"] - each["failed_at"])),
            )
            for each in letters
        ],
        width,
    )
    more = snapshot["dead_letters_kept"] - len(letters)
    return Section(
        head,
        [
            Row(line, "bad", ("letter", each["key"]))
            for line, each in zip(lines, letters, strict=True)
        ],
        f"... and {more:,} more dead letters" if more > 0 else "",
    )


def _advice(snapshot: dict[str, Any], width: int) -> Section:
    rows: list[Row] = []
    for each in snapshot["advice"]:
        rows += [Row(line, "advice") for line in wrapped(each["text"], width)]
    return Section("advice", rows)


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines of at most `width` cells."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if _cell_len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(f"  {word}")
    return lines


def rate(value: float | None) -> str:
    """Events a second, as "12,345/s"; None as "-"."""
    if value is None:
        return "-"
    return f"{value:,.0f}/s" if value >= 10 or not value else f"{value:.1f}/s"


def age(value_s: float) -> str:
    """A time for people: "59 s", "3 min 12 s", "2 h 5 min", "3 d 4 h"."""
    whole = int(value_s)
    for (size, unit), (smaller, name) in _SPANS:
        if whole >= size:
            part = whole % size // smaller
            return f"{whole // size} {unit} {part} {name}" if part else f"{whole // size} {unit}"
    return f"{whole} s"


_SPANS = (
    ((86_400, "d"), (3_600, "h")),
    ((3_600, "h"), (60, "min")),
    ((60, "min"), (1, "s")),
)


def stacks_text(stacks: dict[str, Any]) -> str:
    """Stacks of workers and threads, one below the other."""
    parts = [
        f"worker {each['name']} (process {each['pid']})\n"
        f"{each['stack'] or '  (between two handlers, or its stack could not be read)'}"
        for each in stacks["workers"]
    ]
    parts += [f"thread {each['name']}\n{each['stack']}" for each in stacks["threads"]]
    return "\n\n".join(parts)


def _cell_len(text: str) -> int:
    """The width of a text, in cells of the terminal."""
    return len(text) if cells is None else int(cells.cell_len(text))


def _set_cell_size(text: str, total: int) -> str:
    """The text, cut or filled up to a width in cells."""
    return text[:total].ljust(total) if cells is None else str(cells.set_cell_size(text, total))
