"""The script that is killed in the torture test of the journal, and simply started again.

    python -m tests.integration.torture JOURNAL TALLY COUNT RUN

It publishes COUNT numbered events, each with its number for an id, and notes the effect of every
delivery in the file TALLY, with the facts from `current()`. RUN is the number of the start.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from procbus import EventBus, current
from tests.integration.helpers import Tally

#: The threads of the io lane, and the deliveries that may be pending.
IO_WORKERS = 4
MAX_PENDING = 600


@dataclass(frozen=True)
class Step:
    number: int
    tally: Tally
    run: int


def note(what: str, step: Step) -> None:
    """Note the effect of a delivery: all that the test knows of it."""
    here = current()
    again = int(here.redelivered)
    step.tally.note(f"{what} {step.number} {RUN or step.run} {here.delivery_id} {again}")


#: The number of this start; a worker does not know it.
RUN = 0


def plain(step: Step) -> None:
    note("plain", step)


async def on_loop(step: Step) -> None:
    note("on_loop", step)


class Refused(Exception):
    pass


def flaky(step: Step) -> None:
    if step.number % 5 == 0 and current().attempt == 1:
        raise Refused
    note("flaky", step)


def compute(step: Step) -> int:
    note("compute", step)
    current().publish("leaf", step)
    return step.number


def leaf(step: Step) -> None:
    note("leaf", step)


TOPICS = ("plain", "on_loop", "flaky", "compute")


def main(journal: str, tally: str, count: int, run: int) -> None:
    global RUN
    RUN = run
    with EventBus(
        [], journal=journal, cpu_workers=2, io_workers=IO_WORKERS, max_pending=MAX_PENDING
    ) as bus:
        bus.subscribe("plain", plain)
        bus.subscribe("on_loop", on_loop, concurrency=IO_WORKERS)
        bus.subscribe("flaky", flaky, retries=3, backoff=0.01)
        bus.subscribe("compute", compute, kind="cpu", retries=50, max_crashes=50, backoff=0)
        bus.subscribe("leaf", leaf)
        print("ready", flush=True)  # noqa: T201 - to the test
        for number in range(count):
            topic = TOPICS[number % len(TOPICS)]
            bus.publish(topic, Step(number, Tally(tally), run), id=f"{topic} {number}")
    print("done", flush=True)  # noqa: T201 - to the test


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
