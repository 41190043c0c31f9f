"""The files that one event passes are counted in the script and in the worker."""

from __future__ import annotations

import subprocess
import sys

from tests.integration.helpers import ROOT


def test_the_path_of_an_event_is_counted_in_the_parent_and_in_the_worker() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.event_path", "--files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    _, io, cpu = run.stdout.partition("\ncpu ")[0], *run.stdout.split("\ncpu ")[:2]
    assert "bus.py" in io
    assert "settlement.py" in io
    assert "pool/" not in io
    assert "bus.py" in cpu
    assert "worker" in cpu
