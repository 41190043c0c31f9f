"""The parts of the script's time of an event are measured, and add up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.helpers import ROOT

pytestmark = pytest.mark.bench


def test_the_scripts_time_of_an_event_is_divided_among_its_threads() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.parent_cost", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    events, collectors = run.stdout.split("\n\n")
    rows = [line.rsplit(maxsplit=7) for line in events.splitlines()[1:]]
    assert [row[0].strip() for row in rows][:2] == ["int", "bytes 1,000"]
    for row in rows:
        publishing, results, companions, script = map(float, row[1:5])
        assert publishing + results + companions == pytest.approx(script, abs=0.02)
    assert "gc.freeze()" in collectors
