# SPDX-License-Identifier: MIT
"""A handler is declared of the wrong kind, and the bus finds out."""

from __future__ import annotations

import time

from procbus import EventBus
from procbus.demo.page import Printout

_LONGEST_S = 5.0  # time to wait for advice, on a busy machine
_PENDING = 64  # events on their way at once


def checksum(number: int) -> int:
    """Compute for some milliseconds."""
    return sum(range(200_000 + number))


def play(page: Printout, workers: int) -> None:
    """Declare a handler that computes as one that waits, ask the bus, and do as it says."""
    page.say('checksum(n) computes, but is subscribed with kind="io", for work that waits.')
    events, as_declared, advice = _run_until_advised()
    page.line()
    page.say("bus.advice() says:")
    page.say(advice, indent="  ")
    page.line()
    as_advised = _run_as_advised(events, workers)
    page.line(f'{events:,} events with kind="io":  {as_declared:.2f} s')
    page.line(f'{events:,} events with kind="cpu": {as_advised:.2f} s, workers started')
    if as_advised >= as_declared:
        page.line()
        page.say(
            "The workers needed longer this time: other programs kept the processors busy, or the "
            "start of the workers outweighed the gain. The advice holds for a longer job."
        )


def _run_until_advised() -> tuple[int, float, str]:
    """Publish until the bus is sure: the number of events, their seconds, and its advice."""
    with EventBus([], io_workers=4, max_pending=_PENDING) as bus:
        bus.subscribe(int, checksum, kind="io", name="checksum")
        began_at = time.perf_counter()
        for number in range(1_000_000):
            bus.publish(number)
            if number % _PENDING == 0:
                (advice,) = bus.advice()
                took = time.perf_counter() - began_at
                if took > _LONGEST_S or (advice.kind is not None and took > 1):
                    break
        bus.drain()
        return number + 1, time.perf_counter() - began_at, bus.advice()[0].text


def _run_as_advised(events: int, workers: int) -> float:
    """Seconds for all events."""
    began_at = time.perf_counter()
    with EventBus([], cpu_workers=workers, max_pending=_PENDING) as bus:
        bus.subscribe(int, checksum, kind="cpu", name="checksum")
        for number in range(events):
            bus.publish(number)
    return time.perf_counter() - began_at
