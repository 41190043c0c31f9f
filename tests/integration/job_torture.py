# SPDX-License-Identifier: MIT
"""The script that is killed in the torture test of jobs, and simply started again.

    python -m tests.integration.job_torture JOURNAL TALLY COUNT [settle]

It has a job of COUNT events, each with its number for an id. Handlers on the cpu lane publish a
further event, together with their success. Some handlers on the io lane fail for good. Now and then
the script has an inner job. Its handler of `JobDone` notes the counts in the file TALLY. With
"settle" it opens no job, and only lets the events of earlier runs end.
"""

from __future__ import annotations

import sys

from procbus import EventBus, JobDone, current
from tests.integration.helpers import Tally

#: Interval, in events, between two that fail for good, and between two inner jobs.
FAILS_EACH, INNER_EACH = 7, 50


class Refused(Exception):
    pass


def compute(number: int) -> int:
    current().publish("leaf", number)
    return number


def plain(number: int) -> None:
    if number % FAILS_EACH == 0:
        raise Refused


def leaf(number: int) -> int:
    return number


def main(journal: str, tally: str, count: int, *, settle: bool) -> None:
    counted = Tally(tally)

    def note(done: JobDone) -> None:
        counted.note(f"{done.id} {done.succeeded} {done.failed} {done.cancelled}")

    with EventBus([], journal=journal, cpu_workers=1, io_workers=2, max_pending=300) as bus:
        bus.subscribe("compute", compute, kind="cpu", retries=50, max_crashes=50, backoff=0)
        bus.subscribe("plain", plain)
        bus.subscribe("leaf", leaf)
        bus.subscribe(JobDone, note, name="note")
        print("ready", flush=True)  # noqa: T201 - to the test
        if not settle:
            with bus.job("outer"):
                for number in range(count):
                    topic = "plain" if number % 2 else "compute"
                    bus.publish(topic, number, id=f"{number}")
                    if number % INNER_EACH == 0:
                        with bus.job("inner", id=f"inner {number}"):
                            bus.publish("compute", number, id=f"inner {number}")
        bus.drain()
    print("done", flush=True)  # noqa: T201 - to the test


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), settle=sys.argv[4:] == ["settle"])
