"""How many cores this process may use."""

import os
from pathlib import Path

import pytest

from procbus.system.cores import usable_cores
from tests.unit.system.test_memory import process_in

V2_MOUNT = "30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1_MOUNT = "31 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture(autouse=True)
def a_machine_of_8_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name in ("LOKY_MAX_CPU_COUNT", "PYTHON_CPU_COUNT"):
        monkeypatch.delenv(name, raising=False)


def make(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_limits_the_machines_cores_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    assert usable_cores(tmp_path) == 2


@pytest.mark.parametrize("name", ["LOKY_MAX_CPU_COUNT", "PYTHON_CPU_COUNT"])
@pytest.mark.parametrize(
    ("said", "cores"), [("3", 3), ("0", 1), ("99", 8), ("default", 8), ("", 8), ("-2", 8)]
)
def test_number_from_the_environment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str, cores: int
) -> None:
    monkeypatch.setenv(name, said)
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("own", "above", "cores"),
    [
        ("max 100000", "max 100000", 8),
        ("200000 100000", "max 100000", 2),
        ("max 100000", "150000 100000", 2),
        ("100 100000", "max 100000", 1),
        ("99900000 100000", "max 100000", 8),
        ("", "nonsense", 8),
        ("100000 0", "x y", 8),
    ],
)
def test_quotas_of_version_2(tmp_path: Path, own: str, above: str, cores: int) -> None:
    root = make(
        tmp_path,
        {
            **process_in("0::/a/b\n", V2_MOUNT),
            "sys/fs/cgroup/a/b/cpu.max": own,
            "sys/fs/cgroup/a/cpu.max": above,
        },
    )
    assert usable_cores(root) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("250000", 3), ("0", 8), ("", 8)])
def test_quotas_of_version_1(tmp_path: Path, quota: str, cores: int) -> None:
    root = make(
        tmp_path,
        {
            **process_in("4:cpu,cpuacct:/a\n3:memory:/m\n", V1_MOUNT),
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": quota,
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
        },
    )
    assert usable_cores(root) == cores
