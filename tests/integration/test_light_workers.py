"""A worker imports only what its work needs, because a script waits for its first result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.recipes import environment

#: The handlers are in `__main__`: a worker would import a module of theirs, and so the bus.
SCRIPT = """
import sys
from procbus import EventBus

def loaded():
    return [name for name in sys.modules if name.startswith("procbus.")]

def one(number: int) -> list[str]:
    return loaded()

def several(numbers: list[int]) -> list[list[str]]:
    return [loaded() for _ in numbers]

with EventBus(handlers=[], cpu_workers=1) as bus:
    bus.subscribe("one", one, kind="cpu")
    bus.subscribe("several", several, kind="cpu", batch=2)
    print(*FOUND)
"""
WAYS = {
    "publish": 'bus.publish("one", 1).result()',
    "map": "next(iter(bus.map(one, [1])))",
    "batch": 'bus.publish("several", 1).result()',
    "submit": "bus.executor().submit(loaded).result()",
}


@pytest.mark.parametrize("way", WAYS)
def test_worker_loads_no_module_of_the_side_of_the_script(way: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.replace("FOUND", WAYS[way]))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=150,
    )

    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    assert "procbus.pool.child.main" in found
    assert not {"procbus.core.handler", "procbus.core.receipt", "procbus.futures.mapping"} & found
