# SPDX-License-Identifier: MIT
"""PROCBUS_DEBUG finds changes that have no effect, or one that depends on luck."""

import logging
import os
import subprocess
import sys
import threading
from inspect import currentframe
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus
from procbus.testing import InlineBus

total = 0
barrier: dict[str, threading.Event] = {}


def count(event: list[int]) -> None:
    global total
    total += 1


def read(event: list[int]) -> int:
    return len(event)


def wait(event: list[int]) -> int:
    assert barrier["go"].wait(60)
    return len(event)


@pytest.fixture(autouse=True)
def debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCBUS_DEBUG", "1")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, "procbus")
    return lambda: [
        record.getMessage() for record in caplog.records if "PROCBUS_DEBUG" in record.getMessage()
    ]


def test_a_global_that_workers_change_is_told_once_for_all_of_them(told: Any) -> None:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe(list, count, kind="cpu")
        bus.subscribe(list, read, kind="cpu")
        bus.start()
        for number in range(200):
            bus.publish([number])
        bus.drain()
        assert bus.stats().handlers[f"{__name__}.count"].succeeded == 200
    (text,) = told()
    assert f"{__name__}.count changed the global variable total" in text


def test_a_global_is_not_told_of_threads(told: Any) -> None:
    with EventBus([], cpu="threads") as bus:
        bus.subscribe(list, count, kind="cpu")
        bus.subscribe(list, count)
        bus.publish([1]).wait()
    assert told() == []


@pytest.mark.parametrize("options", [{"kind": "io"}, {"kind": "cpu"}, {"batch": 4}])
def test_an_event_that_is_changed_before_its_handler_begins_is_told_with_the_line(
    told: Any, options: Any
) -> None:
    barrier["go"] = threading.Event()
    line = 0

    def hold(event: str) -> None:
        assert barrier["go"].wait(60)

    with EventBus([], cpu="threads", cpu_workers=1, io_workers=1) as bus:
        kind = options.get("kind", "io")
        bus.subscribe("hold", hold, kind=kind)
        takes = read if "batch" not in options else read_all
        bus.subscribe("rows", takes, **options)
        bus.publish("hold", "x")
        for _ in range(3):
            rows = [1, 2]
            frame = currentframe()
            assert frame is not None
            line = frame.f_lineno + 1
            bus.publish("rows", rows)
            rows.append(3)
        barrier["go"].set()
        bus.drain()
    (text,) = told()
    assert f"(topic rows) for {__name__}.{takes.__name__} was changed after it was" in text
    assert f"{__file__}:{line}: event[2] differs" in text


def read_all(events: list[list[int]]) -> None: ...


def test_an_event_that_is_changed_while_a_worker_has_it_is_told(told: Any, tmp_path: Path) -> None:
    path = tmp_path / "go"

    def spin(event: dict[str, str]) -> None:
        while not Path(event["path"]).exists():
            pass

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(dict, spin, kind="cpu")
        event = {"path": str(path), "note": ""}
        receipt = bus.publish(event)
        event["note"] = "late"
        path.touch()
        receipt.wait()
    (text,) = told()
    assert "event['note'] differs, and a worker process has a copy of it" in text


def test_an_event_that_is_used_again_after_its_receipt_is_done_is_not_told(told: Any) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(list, read)
        bus.subscribe(list, read_rows, kind="cpu")
        rows: list[int] = []
        for number in range(300):
            rows.append(number)
            bus.publish(rows).wait()
    assert told() == []


def read_rows(event: list[int]) -> int:
    return len(event)


def test_the_events_of_a_bus_are_forgotten_once_settled() -> None:
    from procbus.bus import parts_of

    with EventBus([]) as bus:
        bus.subscribe(list, read)
        bus.subscribe(list, read_rows)
        for number in range(100):
            bus.publish([number])
        bus.drain()
        (ear,) = parts_of(bus).settlement.listeners.settled
        watch: Any = ear.hear
        assert watch.__self__.open_events() == 0


def test_an_inline_bus_tells_both(told: Any) -> None:
    rows = [1]

    def change(event: list[int]) -> None:
        rows.append(2)

    with InlineBus([], pickling=True) as bus:
        bus.subscribe(list, change, priority=1)
        bus.subscribe(list, count, kind="cpu")
        bus.publish(rows)
    texts = told()
    assert any("count changed the global variable total" in text for text in texts)
    assert any("event[1] differs" in text for text in texts)


@pytest.mark.parametrize("value", ["0", ""])
def test_without_it_nobody_listens_and_handlers_travel_as_they_are(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from procbus.bus import parts_of

    monkeypatch.setenv("PROCBUS_DEBUG", value)
    with EventBus([]) as bus:
        parts = parts_of(bus)
        listeners = parts.settlement.listeners
        assert (listeners.publishing, listeners.started, listeners.settled) == (False, (), ())
        assert parts.watch is None


SCRIPT = """
from procbus import EventBus

hits = {}

def hit(name: str) -> None:
    hits[name] = hits.get(name, 0) + 1

with EventBus([]) as bus:
    bus.subscribe(str, hit, kind="cpu")
    for name in "abab":
        bus.publish(name)
print(hits)
"""


def test_a_script_is_told_on_stderr(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PROCBUS_DEBUG": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout == "{}\n"
    assert ran.stderr.count("PROCBUS_DEBUG") == 1
    assert "__main__.hit changed the global variable hits['" in ran.stderr
