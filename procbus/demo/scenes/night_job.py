# SPDX-License-Identifier: MIT
"""A script with a journal: start it again after a crash, and it does the rest.

python -m procbus.demo.scenes.night_job JOURNAL DONE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from procbus import EventBus

COUNT = 200


def main(journal: str, done: str) -> None:
    """Convert all films, each of which adds a line to the file `done`."""

    def convert(film: str) -> None:
        time.sleep(0.01)
        with Path(done).open("a") as file:
            file.write(f"{film}\n")

    with EventBus([], journal=journal, cpu_workers=2) as bus:
        bus.subscribe("film", convert, kind="cpu", name="convert")
        for number in range(COUNT):
            # An id that the journal has seen is not run again.
            bus.publish("film", f"film {number}", id=f"film {number}")


if __name__ == "__main__":
    main(*sys.argv[1:])
