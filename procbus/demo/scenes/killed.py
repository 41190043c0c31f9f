# SPDX-License-Identifier: MIT
"""A worker is killed in the middle of a batch, as the kernel does when memory runs out."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from procbus import EventBus
from procbus.demo.page import Printout
from procbus.demo.ways import own_process_pool

_COUNT, _DEADLY = 200, 101


@dataclass(frozen=True)
class Photo:
    """An event. The work on one of them kills its process."""

    number: int


def resize(photo: Photo) -> int:
    """Work for about a millisecond; on one of the photos, die."""
    if photo.number == _DEADLY:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return sum(range(50_000))


def play(page: Printout, workers: int) -> None:
    """Show it on a pool, then on a bus."""
    page.say(
        f"{_COUNT} photos are resized. On photo {_DEADLY} the worker process gets kill -9, as from "
        "the kernel when memory runs out."
    )
    photos = [Photo(number) for number in range(1, _COUNT + 1)]

    with own_process_pool(workers) as pool:
        futures = [pool.submit(resize, photo) for photo in photos]
        broken = [error for error in (future.exception() for future in futures) if error]

    with EventBus([], cpu_workers=workers) as bus:
        bus.subscribe(Photo, resize, kind="cpu")
        for photo in photos:
            bus.publish(photo)
        bus.drain()
        lost = bus.dead_letters

    page.table(
        ["", "results", "lost", "the error of each"],
        [
            ["ProcessPoolExecutor", str(_COUNT - len(broken)), str(len(broken)), _name(broken[0])],
            ["procbus", str(_COUNT - len(lost)), str(len(lost)), _name(lost[0].outcome.error)],
        ],
        left=["", "the error of each"],
    )
    page.say(
        "The pool is broken: all further work fails, and no error names the photo that did it."
    )
    page.say("procbus lost the photo that killed its worker, and names it:")
    page.say(f"{lost[0].event}: {lost[0].outcome.error}", indent="  ")


def _name(error: object) -> str:
    return type(error).__name__
