"""How many cores this process may use."""

import os
from pathlib import Path

import pytest

from procbus.cores import usable_cores


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense", "100000 0", "x y"])
def test_without_a_quota_its_affinity_counts(tmp_path: Path, text: str):
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert usable_cores(quota) == len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path / "nothing") == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["100000 100000", "50000 100000", "1 100000"])
def test_a_quota_of_one_core_or_less_is_one_core(tmp_path: Path, text: str):
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert usable_cores(quota) == 1


def test_a_large_quota_adds_no_cores(tmp_path: Path):
    quota = tmp_path / "cpu.max"
    quota.write_text("99900000 100000")
    assert usable_cores(quota) == len(os.sched_getaffinity(0))
