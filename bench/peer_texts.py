"""The text beside the figures of the peers, with its reasons."""

from __future__ import annotations

from collections.abc import Mapping

from . import latency, pending_memory, startup, tiny_cpu, tiny_io
from .found import Found
from .gil_texts import said
from .model import LIMIT, PROCBUS


def best(found: Found, row: str, most: bool) -> tuple[str, float] | None:
    """Name the best peer of one row, with its figure; the limit and procbus's own are no peers."""
    peers = {
        name: value
        for name in found.contenders
        if name != LIMIT
        and not name.startswith(PROCBUS)
        and (value := found.middle(row, name)) is not None
    }
    if not peers:
        return None
    name = (max if most else min)(peers, key=peers.__getitem__)
    return name, peers[name]


def beside(found: Found, row: str, subject: str, unit: str, most: bool) -> str:
    """Write one item of the list."""
    peer = best(found, row, most)
    other = f"; the best peer, {peer[0]}, {said(peer[1])}" if peer else ""
    limit = found.middle(row, LIMIT)
    bound = "" if limit is None else f"; the limit {said(limit)}"
    return f"- {subject}: procbus {said(found.middle(row, PROCBUS))} {unit}{other}{bound}."


def of_peers(questions: Mapping[str, Found]) -> str:
    """Say how procbus does beside the best of the others, row by row."""
    int_row = next(iter(tiny_cpu.MAKE_EVENT))
    rows = [
        ("tiny_cpu", int_row, "Tiny handlers in processes", "events/s", True),
        ("tiny_io", tiny_io.ROW, "Tiny handlers in this process", "events/s", True),
        ("latency", latency.ROW, "From publish to result on an idle machine", "µs", False),
        ("pending_memory", pending_memory.ROW, "Memory of a waiting event", "bytes", False),
        ("startup", startup.IMPORT, "Import", "ms", False),
        ("startup", startup.FIRST, "Start to the first result of a worker", "ms", False),
    ]
    seen = [
        beside(questions[name], row, subject, unit, most)
        for name, row, subject, unit, most in rows
        if name in questions
    ]
    missing = sorted({name for found in questions.values() for name in found.not_installed})
    left_out = f"\n\nNot installed here, and so left out: {', '.join(missing)}." if missing else ""
    return (
        "\n".join(seen) + f"{left_out}\n\n"
        f"Why: procbus sends batches of events on a pipe that only two ends share. Pools send one "
        f"event at a time, through a queue whose lock all workers share. Signals such as blinker's "
        f"and pyee's are calls in the publisher's own thread: no way is faster, and no handler "
        f"runs beside another. Pools that fork start in milliseconds. A fresh interpreter takes "
        f"longer, and inherits no lock that another thread holds. If your handlers run in the "
        f"script's own process, one that dies (a segfault, a kill) ends the whole script. The "
        f"table of `crash_table` shows you a death in a pool: there, one of 200 tasks kills its "
        f"process."
    )
