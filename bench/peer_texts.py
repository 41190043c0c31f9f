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
    """Write one sentence of one row."""
    peer = best(found, row, most)
    other = f"; the best peer, {peer[0]}, {said(peer[1])}" if peer else ""
    limit = found.middle(row, LIMIT)
    bound = "" if limit is None else f"; the limit {said(limit)}"
    return f"{subject}: procbus {said(found.middle(row, PROCBUS))} {unit}{other}{bound}."


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
    left_out = f" Not installed here, and so left out: {', '.join(missing)}." if missing else ""
    return (
        f"{' '.join(seen)}{left_out}\n\n"
        f"Why: procbus sends events in batches on a pipe that only two ends share, where pools "
        f"send one at a time through a queue with a lock that all workers share. Signals such as "
        f"blinker's and pyee's are calls in the publisher's own thread: nothing can be faster, "
        f"nothing waits, and nothing runs beside anything else. Pools that fork start in "
        f"milliseconds; a fresh interpreter takes longer, and inherits no lock that another "
        f"thread holds. If your handlers run in the script's process, one that dies (a segfault, a "
        f"kill) ends the whole script. The table of `crash_table`, where one of 200 tasks kills "
        f"its process, shows you the effect on a pool."
    )
