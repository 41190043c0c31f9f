# SPDX-License-Identifier: MIT
"""A handler hangs, and its time limit ends it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass

from procbus import EventBus
from procbus.demo.page import Printout
from procbus.demo.ways import own_process_pool

_LIMIT_S = 1.0


@dataclass(frozen=True)
class Document:
    """An event."""

    name: str


def extract(document: Document) -> str:
    """Read a document with a parser that does not come to an end."""
    return _next_token(document.name)


def _next_token(text: str) -> str:
    while True:
        text = text[1:] + text[:1]


def play(page: Printout, workers: int) -> None:  # noqa: ARG001 - one is enough
    """Show it on a pool, then on a bus."""
    page.say("A parser never ends on one document. You want it to stop after a second.")
    document = Document("invoice.pdf")

    with own_process_pool(1) as pool:
        process = pool.submit(os.getpid).result()
        try:
            future = pool.submit(extract, document)
            with suppress(FutureTimeout):
                future.result(timeout=_LIMIT_S)
            runs_on = future.running() and not future.cancel()
        finally:
            # Else leaving the block would wait for ever.
            os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(Document, extract, kind="cpu", timeout=_LIMIT_S)
        (delivery,) = bus.publish(document).deliveries
        bus.drain()
        error = delivery.outcome.error if delivery.outcome else None

    page.line()
    page.say(
        "ProcessPoolExecutor: result(timeout=1) came back, but the process "
        + ("computes on. cancel() has no effect, " if runs_on else "is at the next task, ")
        + "and the with block waits for ever. The demo had to kill that process itself."
    )
    page.line()
    page.say("procbus, with timeout=1: a fresh worker takes the next event, and you see the place:")
    page.say(str(error), indent="  ")
    for note in getattr(error, "__notes__", ()):
        for line in note.splitlines():
            page.line(f"  {line}")
