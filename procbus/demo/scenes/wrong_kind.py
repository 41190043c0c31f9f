# SPDX-License-Identifier: MIT
"""A handler is declared of the wrong kind, and the bus finds out."""

from __future__ import annotations

import time
from typing import Literal

from procbus import EventBus
from procbus.demo.page import Page

TITLE = "A handler of the wrong kind"
_EVENTS = 200


def checksum(number: int) -> int:
    """Compute for some milliseconds."""
    return sum(range(200_000 + number))


def play(page: Page, workers: int) -> None:
    """Declare a handler that computes as one that waits, ask the bus, and do as it says."""
    page.say('checksum(n) computes, but is subscribed with kind="io", for work that waits.')
    as_declared, advice = _run("io")
    page.line()
    page.say("bus.advice() says:")
    page.say(advice, indent="  ")
    page.line()
    as_advised, _ = _run("cpu")
    page.line(f'{_EVENTS} events with kind="io":  {as_declared:.2f} s')
    page.line(
        f'{_EVENTS} events with kind="cpu": {as_advised:.2f} s, the start of workers included'
    )


def _run(kind: Literal["io", "cpu"]) -> tuple[float, str]:
    """Seconds for all events, and the bus's advice."""
    began_at = time.perf_counter()
    with EventBus([], io_workers=4) as bus:
        bus.subscribe(int, checksum, kind=kind, name="checksum")
        for number in range(_EVENTS):
            bus.publish(number)
        bus.drain()
        seconds = time.perf_counter() - began_at
        (advice,) = bus.advice()
    return seconds, advice.text
