# SPDX-License-Identifier: MIT
"""The memory that is left, by made-up trees of cgroups; and when it is short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.system.memory import MemoryWatch, available_bytes, oom_kills, total_bytes
from procbus.system.process import Memory

MIB = 1 << 20
GIB = 1 << 30

#: As version 1 says "unlimited".
UNLIMITED = 9223372036854771712

V2_MOUNT = "30 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
CPU_MOUNT = "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"

Make = Callable[[dict[str, str]], Path]


def available_in(root: Path) -> int:
    """On a machine of 16 GiB, half of which is free."""
    return available_bytes(root, lambda: Memory(16 * GIB, 8 * GIB))


def total_in(root: Path) -> int:
    return total_bytes(root, lambda: Memory(16 * GIB, 8 * GIB))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes files below a directory that stands for "/"."""

    def make_files(files: dict[str, str]) -> Path:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return make_files


def v2(path: str = "/", **files: str) -> dict[str, str]:
    """Files of a cgroup of version 2; `memory_max` stands for memory.max."""
    directory = f"sys/fs/cgroup{path}".rstrip("/")
    return {f"{directory}/{name.replace('_', '.', 1)}": text for name, text in files.items()}


def process_in(cgroup: str, *mounts: str) -> dict[str, str]:
    return {"proc/self/cgroup": cgroup, "proc/self/mountinfo": "\n".join(mounts) + "\n"}


def test_without_cgroups_the_machines_memory_counts(make: Make) -> None:
    root = make({"proc/vmstat": "nr_free_pages 1\noom_kill 3\n"})

    assert available_in(root) == 8 * GIB
    assert total_in(root) == 16 * GIB
    assert oom_kills(root) == 3


def test_empty_tree_has_no_limit(make: Make) -> None:
    root = make({})
    assert available_in(root) == 8 * GIB
    assert oom_kills(root) == 0


def test_the_limit_of_version_2(make: Make) -> None:
    root = make(
        process_in("0::/box\n", V2_MOUNT)
        | v2(
            "/box",
            memory_max=f"{2 * GIB}\n",
            memory_current=f"{GIB}\n",
            memory_stat=f"anon {GIB - 300 * MIB}\nfile {300 * MIB}\ninactive_file {256 * MIB}\n",
            memory_events="low 0\nmax 17\noom 2\noom_kill 5\n",
        )
    )

    assert available_in(root) == GIB + 256 * MIB
    assert total_in(root) == 2 * GIB
    assert oom_kills(root) == 5


def test_a_group_above_may_leave_less(make: Make) -> None:
    root = make(
        process_in("0::/slice/box\n", V2_MOUNT)
        | v2("/slice/box", memory_max="max\n", memory_current="1\n", memory_events="oom_kill 1\n")
        | v2(
            "/slice",
            memory_max=f"{GIB}\n",
            memory_current=f"{GIB - MIB}\n",
            memory_events="oom_kill 40\n",
        )
    )

    assert available_in(root) == MIB
    assert total_in(root) == GIB
    assert oom_kills(root) == 1, "those of others are none of ours"


def test_more_used_than_allowed_leaves_nothing(make: Make) -> None:
    root = make(
        process_in("0::/\n", V2_MOUNT) | v2(memory_max=f"{GIB}\n", memory_current=f"{2 * GIB}\n")
    )
    assert available_in(root) == 0


def test_the_machine_may_have_less_than_the_limit(make: Make) -> None:
    root = make(
        process_in("0::/\n", V2_MOUNT) | v2(memory_max=f"{64 * GIB}\n", memory_current="0\n")
    )
    assert available_in(root) == 8 * GIB
    assert total_in(root) == 16 * GIB


def v1(directory: str, limit: int) -> dict[str, str]:
    top = f"sys/fs/cgroup/memory{directory}"
    return {
        f"{top}/memory.limit_in_bytes": f"{limit}\n",
        f"{top}/memory.usage_in_bytes": f"{300 * MIB}\n",
        f"{top}/memory.stat": f"inactive_file 1\ntotal_inactive_file {100 * MIB}\n",
        f"{top}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    }


def test_the_limit_of_version_1(make: Make) -> None:
    root = make(
        process_in("4:memory:/docker/box\n1:cpu:/\n0::/\n", CPU_MOUNT, V1_MOUNT)
        | v1("/docker/box", UNLIMITED)
        | v1("/docker", 512 * MIB)
        | v1("", UNLIMITED)
    )

    assert available_in(root) == 312 * MIB
    assert total_in(root) == 512 * MIB
    assert oom_kills(root) == 2


def test_no_limit_of_version_1(make: Make) -> None:
    root = make(process_in("4:memory:/\n", V1_MOUNT) | v1("", UNLIMITED))
    assert available_in(root) == 8 * GIB


def test_a_container_sees_its_own_part_of_the_hierarchy(make: Make) -> None:
    mount = V1_MOUNT.replace("0:32 / /", "0:32 /docker/box /")
    root = make(process_in("4:memory:/docker/box/inner\n", mount) | v1("/inner", 512 * MIB))
    assert total_in(root) == 512 * MIB


@pytest.mark.parametrize("path", ["/elsewhere", "/../elsewhere"])
def test_limit_of_memory_is_found_for_a_group_outside_the_mount(make: Make, path: str) -> None:
    mount = V1_MOUNT.replace("0:32 / /", "0:32 /docker/box /") if path == "/elsewhere" else V1_MOUNT
    root = make(process_in(f"4:memory:{path}\n", mount) | v1("", 512 * MIB))
    assert total_in(root) == 512 * MIB


def test_a_mount_with_a_blank_in_its_name(make: Make) -> None:
    mount = V2_MOUNT.replace("/sys/fs/cgroup", r"/my\040groups")
    root = make(process_in("0::/\n", mount) | {"my groups/memory.max": f"{GIB}\n"})
    assert total_in(root) == GIB
    assert available_in(root) == 8 * GIB, "what is used is not known"


@pytest.mark.parametrize("mountinfo", ["", "\n", "30 24 0:27 / /sys rw\n", "- x\n"])
def test_table_of_mounts_without_cgroups_leaves_the_machines_memory(
    make: Make, mountinfo: str
) -> None:
    root = make({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountinfo})
    assert available_in(root) == 8 * GIB


def test_memory_of_this_machine_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 0 < available_bytes() <= total_bytes()
    assert oom_kills() >= 0
    assert isinstance(MemoryWatch().short(), bool)


# When it is short.


def test_memory_is_short_until_there_is_clearly_enough() -> None:
    watch = MemoryWatch(16 * GIB)
    low = 16 * GIB // 20

    assert not watch.short(low)
    assert watch.short(low - 1)
    assert watch.short(low), "not enough yet"
    assert watch.short(low * 3 // 2)
    assert not watch.short(low * 3 // 2 + 1)
    assert not watch.short(low)


@pytest.mark.parametrize(
    ("total", "low"),
    [
        (64 * GIB, 64 * GIB // 20),
        (2 * GIB, 128 * MIB),
        (256 * MIB, 256 * MIB // 10),
        (0, 0),
    ],
)
def test_threshold_of_short_memory_depends_on_the_total(total: int, low: int) -> None:
    assert MemoryWatch(total).short_below == low


def test_a_watch_looks_for_itself(make: Make, monkeypatch: Any) -> None:
    root = make(
        process_in("0::/\n", V2_MOUNT)
        | v2(memory_max=f"{GIB}\n", memory_current=f"{GIB - 10 * MIB}\n")
    )
    watch = MemoryWatch(root=root)

    assert watch.short_below == GIB // 10
    assert watch.short()
    make(v2(memory_current=f"{GIB // 2}\n"))
    assert not watch.short()


@given(st.integers(0, 1 << 45), st.lists(st.integers(0, 1 << 45), max_size=50))
def test_short_memory_needs_clearly_more_to_recover(total: int, seen: list[int]) -> None:
    watch = MemoryWatch(total)
    assert watch.short_below <= total // 10 + 1
    was_short = False
    for available in seen:
        short = watch.short(available)
        if available < watch.short_below:
            assert short
        elif available > watch.enough_above:
            assert not short
        else:
            assert short == was_short, "between the two nothing changes"
        was_short = short
