# SPDX-License-Identifier: MIT
"""Signal handlers publish to a bus with a journal, whatever the main thread is doing in it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waits import BOUND_S

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")

SCRIPT = """
import signal, sys, threading
from procbus import EventBus

how, durability, count = sys.argv[2], sys.argv[3], int(sys.argv[4])
ran = set()
accepted = set()
inside = False


def publish(bus, event):
    if how == "ids":
        bus.publish("topic.0", event, id=str(event))
    else:
        bus.publish(f"topic.{event[1] % 200}", event)
    accepted.add(event)


with EventBus([], journal=sys.argv[1], durability=durability) as bus:
    for number in range(200):
        bus.subscribe(f"topic.{number}", ran.add, name=f"note {number}")

    def interrupt(*_):
        global inside
        if not inside:  # one at a time, or a slow disk would never let the script go on
            inside = True
            publish(bus, ("signal", len(accepted)))
            inside = False

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    other = threading.Thread(target=lambda: [publish(bus, ("other", n)) for n in range(count)])
    other.start()
    for n in range(count):
        publish(bus, ("main", n))
    other.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
assert len(accepted) >= 2 * count
assert ran == accepted, len(accepted - ran)
"""


@pytest.mark.parametrize(
    ("how", "durability", "count"),
    [
        ("ids", "process", 1_000),
        ("topics", "process", 1_000),
        ("topics", "power", 50),
    ],
)
def test_a_signal_handler_publishes_to_a_journal_at_any_moment(
    tmp_path: Path, how: str, durability: str, count: int
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run.db"), how, durability, str(count)],
        capture_output=True,
        text=True,
        timeout=2 * BOUND_S,
    )
    assert run.returncode == 0, run.stderr[-3_000:]
