"""How many events per second do eight threads publish so that a loss of power cannot harm them?

Beside it, one commit for each event: the same journal with one thread, which shares no flush.
"""

from __future__ import annotations

import os
import tempfile
import threading
from time import perf_counter

from .model import PROCBUS, Question, Row, Settings, Target
from .work import tiny

ROW = 'publish, durability="power"'
THREADS = 8
COUNT = 200  # of each thread


def eight_threads(settings: Settings) -> dict[str, float]:
    """Eight threads that publish at the same time."""
    return {ROW: rate(settings.count(COUNT), THREADS)}


def one_thread(settings: Settings) -> dict[str, float]:
    """One thread: a flush for each event."""
    return {ROW: rate(settings.count(COUNT), 1)}


def rate(count: int, threads: int) -> float:
    from procbus import EventBus

    # Not in memory, where a flush costs nothing: beside this file, as a job has its journal.
    with (
        tempfile.TemporaryDirectory(dir=os.getcwd()) as directory,
        EventBus([], journal=os.path.join(directory, "run.db"), durability="power") as bus,
    ):
        bus.subscribe(int, tiny, kind="io")
        bus.publish(0).result()
        start = threading.Barrier(threads + 1)

        def publish() -> None:
            start.wait()
            for number in range(count):
                bus.publish(number)

        publishers = [threading.Thread(target=publish) for _ in range(threads)]
        for publisher in publishers:
            publisher.start()
        start.wait()
        began = perf_counter()
        for publisher in publishers:
            publisher.join()
        return count * threads / (perf_counter() - began)


QUESTION = Question(
    name="journal_power",
    asks="How many events per second do eight threads publish safe from a loss of power?",
    rows=(Row(ROW, "events/s", (Target(5, at_least=True, against="one commit each"),)),),
    contenders={PROCBUS: eight_threads, "one commit each": one_thread},
)
