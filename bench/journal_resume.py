"""How soon does a script go on with a journal of 1,000,000 finished events, in how much memory?

The journal also has 10,000 deliveries that are not finished. The script that made it was a process
of its own, so that its memory does not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from itertools import islice
from time import perf_counter

from .model import PROCBUS, Question, Row, Settings, Target
from .work import tiny

FIRST = "1,000,000 finished, 10,000 not: to the first handler"
MEMORY = "1,000,000 finished, 10,000 not: memory"
SKIP = "1,000,000 ids that are finished, skipped"
FINISHED = 1_000_000
UNFINISHED = 10_000
SAMPLED_EVERY = 10_000


def name_of(number: int) -> str:
    return f"record-{number}"


def stay(_: str) -> None:
    """Hold the handler's one place until the process ends."""
    threading.Event().wait()


def fill(path: str, finished: int, unfinished: int) -> None:
    """Make the journal, and die in the middle of it."""
    from procbus import EventBus

    bus = EventBus([], journal=path, max_pending=unfinished + 1_000)
    bus.subscribe(int, tiny, kind="io", name="tiny")
    bus.subscribe(str, stay, kind="io", name="late", concurrency=1)
    for _ in bus.stream(range(finished), id=name_of):
        pass
    for number in range(unfinished):
        bus.publish(f"late {number}", id=f"late-{number}")
    os._exit(0)


def resume_rates(settings: Settings) -> dict[str, float]:
    """Start again with the same loop."""
    import psutil

    from procbus import EventBus

    finished, unfinished = settings.count(FINISHED), settings.count(UNFINISHED)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "run.db")
        script = f"from {__name__} import fill; fill({path!r}, {finished}, {unfinished})"
        subprocess.run([sys.executable, "-c", script], check=True)
        began_running: list[float] = []

        def late(_: str) -> None:
            if not began_running:
                began_running.append(perf_counter())

        process = psutil.Process()
        peak = 0
        began = perf_counter()
        with EventBus([], journal=path) as bus:
            bus.subscribe(int, tiny, kind="io", name="tiny")
            bus.subscribe(str, late, kind="io", name="late")
            skipping = perf_counter()
            receipts = bus.stream(range(finished), id=name_of)
            while list(islice(receipts, SAMPLED_EVERY)):
                peak = max(peak, process.memory_info().rss)
            skipped = perf_counter() - skipping
            bus.drain()
            summary = bus.resume_summary
        assert summary is not None
        assert dict(summary.resumed) == {"late": unfinished}
    return {FIRST: began_running[0] - began, MEMORY: peak / 1e6, SKIP: skipped}


QUESTION = Question(
    name="journal_resume",
    asks="How soon does a script go on with a journal of 1,000,000 finished events?",
    rows=(
        Row(FIRST, "s", (Target(2, at_least=False, unit="s"),)),
        Row(MEMORY, "MB", (Target(200, at_least=False, unit="MB"),)),
        Row(SKIP, "s"),
    ),
    contenders={PROCBUS: resume_rates},
    time_limit=300.0,
    rounds=1,
)
