# SPDX-License-Identifier: MIT
"""Memory that counts towards a limit, at a made-up time and for made-up processes."""

from __future__ import annotations

from typing import Any

import pytest

from procbus.system.footprint import CHILDREN_S, LEAST_S, MOST_S, Footprint, FootprintMeter

MIB = 1 << 20
LIMIT = 100 * MIB


class World:
    """A worker and its children."""

    pid = 1

    def __init__(self) -> None:
        self.now = 1000.0
        self.own: int | None = 10 * MIB
        #: For each child its memory, and its share of that.
        self.found: dict[int, tuple[int, int]] = {}
        #: Children that the worker's other threads started.
        self.hidden: set[int] = set()
        self.looks: list[bool] = []
        self.closer_looks = 0
        self.closer_look_s = 0.01
        self.meter = FootprintMeter(
            clock=lambda: self.now,
            own_bytes=lambda pid: self.found.get(pid, (0, 0))[0],
            fair_bytes=self.fair_bytes,
        )

    def own_bytes(self) -> int | None:
        return self.own

    def fair_bytes(self, pid: int) -> int | None:
        if pid == self.pid:
            self.closer_looks += 1
            self.now += self.closer_look_s
            return self.own
        return self.found.get(pid, (0, 0))[1] or None

    def children(self, *, any_thread: bool) -> list[int]:
        self.looks.append(any_thread)
        return [pid for pid in self.found if any_thread or pid not in self.hidden]

    def measure(self, later_s: float = CHILDREN_S) -> Footprint | None:
        self.now += later_s
        worker: Any = self
        return self.meter.measure(worker, LIMIT)


@pytest.fixture
def world() -> World:
    return World()


def test_a_worker_without_children(world: World) -> None:
    assert world.measure() == Footprint(10 * MIB)
    assert str(Footprint(10 * MIB)) == "10 MiB"


def test_worker_that_is_gone_has_no_footprint(world: World) -> None:
    world.own = None
    assert world.measure() is None


def test_children_count_with_their_own_memory(world: World) -> None:
    world.found = {2: (20 * MIB, 15 * MIB), 3: (30 * MIB, 25 * MIB)}

    found = world.measure()

    assert found == Footprint(10 * MIB, 50 * MIB, 2)
    assert found.total == 60 * MIB
    assert str(found) == ("60 MiB (10 MiB in its worker and 50 MiB in 2 processes that it started)")
    assert world.closer_looks == 0


def test_a_single_child_is_named_as_such() -> None:
    assert "in a process that it started" in str(Footprint(MIB, MIB, 1))


def test_children_are_looked_for_less_often_than_they_are_measured(world: World) -> None:
    world.measure()
    world.found = {2: (20 * MIB, 20 * MIB)}
    assert world.measure(CHILDREN_S / 4) == Footprint(10 * MIB), "nobody looked"
    assert world.measure() == Footprint(10 * MIB, 20 * MIB, 1)

    world.found = {2: (30 * MIB, 30 * MIB)}
    assert world.measure(CHILDREN_S / 4) == Footprint(10 * MIB, 30 * MIB, 1)
    assert len(world.looks) == 2


def test_children_of_other_threads_are_found_later_and_not_forgotten(world: World) -> None:
    world.measure()
    world.found, world.hidden = {2: (20 * MIB, 20 * MIB)}, {2}

    totals = [found.total for _ in range(10) if (found := world.measure()) is not None]

    assert totals == [10 * MIB] * 4 + [30 * MIB] * 6
    assert world.looks == [True, False, False, False, False] * 2 + [True]


def test_children_that_have_ended_count_no_more(world: World) -> None:
    world.found = {2: (20 * MIB, 20 * MIB), 3: (5 * MIB, 5 * MIB)}
    world.measure()
    del world.found[2]
    assert world.measure(0.0) == Footprint(10 * MIB, 5 * MIB, 1)


def test_memory_shared_by_forked_children_counts_once(world: World) -> None:
    world.own = 40 * MIB
    world.found = {2: (70 * MIB, 20 * MIB)}

    assert world.measure() == Footprint(40 * MIB, 20 * MIB, 1)
    assert world.closer_looks == 1


def test_closer_looks_take_a_small_share_of_the_time(world: World) -> None:
    world.found = {2: (200 * MIB, 20 * MIB)}

    for _ in range(100):
        world.measure(0.05)

    assert 20 <= world.closer_looks <= 26, "5 s, of which each takes 10 ms"


def test_a_worker_that_is_above_by_itself_is_not_looked_at_closely(world: World) -> None:
    world.own, world.found = LIMIT + 1, {2: (MIB, MIB)}

    assert world.measure() == Footprint(LIMIT + 1, MIB, 1)
    assert world.closer_looks == 0


def test_rough_measurement_counts_if_no_precise_one_can_be_had(world: World) -> None:
    world.found = {2: (200 * MIB, 0)}

    assert world.measure() == Footprint(10 * MIB, 200 * MIB, 1)


def test_measurement_is_due_more_often_near_the_limit(world: World) -> None:
    assert world.meter.due_at(LIMIT) < 0, "at once"
    world.measure()
    far, near = 10 << 30, 10 * MIB + (400 << 20)
    assert world.meter.due_at(far) == world.now + MOST_S
    assert world.meter.due_at(near) == pytest.approx(world.now + 400 / 4096)
    assert world.meter.due_at(5 * MIB) == world.now + LEAST_S


def test_precise_measurement_is_due_soon(world: World) -> None:
    world.found = {2: (200 * MIB, 20 * MIB)}
    assert world.measure() == Footprint(10 * MIB, 20 * MIB, 1)
    assert world.measure(0.01) is None
    assert world.meter.due_at(LIMIT) == world.now + LEAST_S
