# SPDX-License-Identifier: MIT
"""A process without a file descriptor left goes on: large events take the pipe, limits hold."""

from pathlib import Path

import pytest

from tests.integration.helpers import Program

HOARD = """
import os, resource, time
from procbus import EventBus, HandlerTimeout

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

def hoard():
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return taken

"""

TRAVEL = """
kept = []

def hoard_there(_):
    kept.extend(hoard())

def make(size):
    return bytes(size)

with EventBus([], cpu_workers=1) as bus:
    bus.subscribe("len", len, kind="cpu")
    bus.subscribe("limited", len, kind="cpu", name="limited", max_memory="2 GiB", timeout=60)
    bus.subscribe("make", make, kind="cpu")
    bus.subscribe("hoard", hoard_there, kind="cpu")
    assert bus.publish("len", b"x").result(60) == 1
    if WHERE == "script":
        taken = hoard()
    else:
        bus.publish("hoard", None).result(60)
    for size in (100_000, 20_000_000) * 3:
        for topic in ("len", "limited"):
            assert bus.publish(topic, bytes(size)).result(60) == size
        assert len(bus.publish("make", size).result(60)) == size
    if WHERE == "script":
        for fd in taken:
            os.close(fd)
    assert bus.stats().lanes["cpu"].restarts == 0
print("all arrived")
"""

LIMIT = """
with EventBus([], cpu_workers=1) as bus:
    bus.subscribe("sleep", time.sleep, kind="cpu", timeout=1.0)
    bus.publish("sleep", 0).result(60)
    taken = hoard()
    try:
        bus.publish("sleep", 600).result(60)
    except HandlerTimeout:
        print("ended in time")
    for fd in taken:
        os.close(fd)
    bus.publish("sleep", 0).result(60)
"""


@pytest.mark.parametrize("where", ["script", "worker"])
def test_large_events_and_results_arrive(tmp_path: Path, where: str) -> None:
    path = tmp_path / "job.py"
    path.write_text(HOARD + f"WHERE = {where!r}\n" + TRAVEL)
    program = Program(path)
    try:
        ended = program.finish()
    finally:
        program.close()
    assert ended.code == 0, ended.err
    assert ended.out.endswith("all arrived\n")
    if where == "script":  # a worker that has none complains of it at its own end
        assert (ended.out, ended.err) == ("all arrived\n", "")


def test_a_handler_is_ended_at_its_limit_and_the_worker_replaced(tmp_path: Path) -> None:
    path = tmp_path / "job.py"
    path.write_text(HOARD + LIMIT)
    program = Program(path)
    try:
        ended = program.finish()
    finally:
        program.close()
    assert ended.code == 0, ended.err
    assert ended.out == "ended in time\n"
    assert "procbus itself failed" not in ended.err
