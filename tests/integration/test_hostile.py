"""Objects of users that misbehave never hurt a neighbour, and never hang the bus."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.helpers import ROOT
from tests.integration.hostile import LANES

pytestmark = pytest.mark.slow


def try_out(*arguments: str, timeout: float) -> dict[str, Any]:
    """Throw hostile objects at buses, in another process, and return the faults found."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.integration.hostile", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert run.returncode == 0, run.stderr[-5_000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.timeout(240)
def test_hostile_objects_harm_no_other_delivery(lane: str) -> None:
    found = try_out("--count", "120", "--seed", "12", "--lane", lane, timeout=230)

    assert found == {"tried": 120, "wrong": []}


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("seed", range(5))
def test_thousands_of_hostile_objects_harm_no_other_delivery(lane: str, seed: int) -> None:
    found = try_out("--count", "500", "--seed", str(seed), "--lane", lane, timeout=7_000)

    assert found == {"tried": 500, "wrong": []}
