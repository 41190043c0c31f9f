# SPDX-License-Identifier: MIT
"""Scripts with a journal that end in every way there is, and are started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.helpers import ROOT, WAKING, Tally

pytestmark = pytest.mark.slow

BOUND_S = 60.0

#: Publishes ten events to each lane; io handlers that are told to stay do so in the third.
SCRIPT = """
    import sys, threading
    from dataclasses import dataclass

    from procbus import EventBus, current
    from tests.integration.helpers import Tally

    path, tally, how = sys.argv[1:]


    @dataclass
    class Order:
        number: int
        tally: str


    def note(order: Order) -> None:
        Tally(order.tally).note(f"io {order.number}")
        if order.number == 2 and how != "end":
            print("third", flush=True)
            threading.Event().wait(60)


    def compute(order: Order) -> None:
        Tally(order.tally).note(f"cpu {order.number}")
        current().publish("child", order)


    def child(order: Order) -> None:
        Tally(order.tally).note(f"child {order.number}")


    bus = EventBus([], journal=path, io_workers=1, cpu_workers=1)
    bus.subscribe(Order, note, name="note")
    bus.subscribe(Order, compute, name="compute", kind="cpu")
    bus.subscribe("child", child, name="child")
    for number in range(10):
        bus.publish(Order(number, tally), id=str(number))
    if how == "stay":
        bus.drain()
    if how == "raise":
        raise RuntimeError("a bug of the script")
"""
ALL = {f"{what} {number}" for what in ("io", "cpu", "child") for number in range(10)}


def start(tmp_path: Path, how: str) -> subprocess.Popen[str]:
    (tmp_path / "job.py").write_text(WAKING + textwrap.dedent(SCRIPT))
    job, journal = str(tmp_path / "job.py"), str(tmp_path / "run.db")
    return subprocess.Popen(
        [sys.executable, job, journal, tally(tmp_path).path, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def tally(tmp_path: Path) -> Tally:
    return Tally(str(tmp_path / "tally"))


def end(script: subprocess.Popen[str]) -> tuple[int, str]:
    with script:
        _, errors = script.communicate(timeout=BOUND_S)
    return script.returncode, errors


def test_script_that_ends_without_closing_its_bus_finishes_everything(tmp_path: Path):
    assert end(start(tmp_path, "end")) == (0, "")
    assert tally(tmp_path).counts() == Counter(ALL)
    assert not (tmp_path / "run.db-intake").exists(), "the journal was closed"
    assert end(start(tmp_path, "end")) == (0, "")
    assert tally(tmp_path).counts() == Counter(ALL), "the ids were seen"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGABRT])
def test_script_ended_by_a_signal_does_the_rest_at_the_next_start(
    tmp_path: Path, number: signal.Signals
):
    script = start(tmp_path, "stay")
    assert script.stdout is not None
    assert script.stdout.readline() == "third\n"
    script.send_signal(number)
    code, errors = end(script)
    assert code != 0
    if number is signal.SIGINT:
        assert "They are in the journal, and run at the next start" in errors
    assert end(start(tmp_path, "end")) == (0, "")
    counts = tally(tmp_path).counts()
    assert set(counts) == ALL
    # The delivery in a handler, and the batch of a worker process.
    assert all(count == 1 for line, count in counts.items() if line.startswith("child"))
    assert {line for line, count in counts.items() if count > 1 and line.startswith("io")} <= {
        "io 2"
    }


def test_script_that_raises_finishes_everything(tmp_path: Path):
    script = start(tmp_path, "raise")
    assert script.stdout is not None
    assert script.stdout.readline() == "third\n"  # in the third io handler, for a minute
    script.kill()
    end(script)
    assert end(start(tmp_path, "end")) == (0, "")
    assert set(tally(tmp_path).counts()) == ALL
