# SPDX-License-Identifier: MIT
"""When a worker is replaced between two deliveries, and when it is not."""

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import wear as wear_module
from procbus.delivery import Delivery
from procbus.handler import make_handler
from procbus.subscription import Subscription
from procbus.wear import Wear, may_replace, too_grown_for
from tests.parts import FakeLane, delivery_to, handle

MIB = 1 << 20


class FakeProbe:
    """A process of so many bytes; None when it is gone."""

    def __init__(self, rss: int | None) -> None:
        self._rss = rss
        self.asked = 0

    def rss(self) -> int | None:
        self.asked += 1
        return self._rss


def probe(rss: int | None) -> Any:
    return FakeProbe(rss)


def deliveries(*max_memory: int | None) -> list[Delivery]:
    """A delivery to a cpu handler of its own for each limit."""
    made = []
    for limit in max_memory:
        handler = make_handler(handle, "t", kind="cpu", name="resize", max_memory=limit)
        made.append(delivery_to(Subscription(handler, FakeLane())))
    return made


# Events.


def test_without_limits_nothing_wears_a_worker_out() -> None:
    wear = Wear()

    assert not wear.limited
    assert wear.left(10**9) is None
    assert wear.worn_out(10**9, probe(1 << 50)) == ""


@given(st.integers(1, 100), st.integers(0, 200))
def test_a_worker_does_no_more_than_its_number_of_events(most: int, done: int) -> None:
    wear = Wear(max_events=most)
    worn_out = wear.worn_out(done, None)

    assert bool(worn_out) == (done >= most)
    if worn_out:
        assert worn_out == f"{done} events (max_events_per_worker)"
    else:
        left = wear.left(done)
        assert left is not None
        assert left >= 1
        assert done + left == most


def test_a_worker_that_cannot_be_replaced_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # With nothing left for it, it would wait for ever for a batch that it may have.
    monkeypatch.setattr(wear_module, "may_replace", lambda: False)
    wear = Wear(max_events=3, max_memory=MIB)

    assert wear.worn_out(3, probe(2 * MIB)) == ""
    left = wear.left(3)
    assert left is None or left > 0


# Memory.


def test_a_worker_that_grew_too_large_is_worn_out_and_the_reason_says_so() -> None:
    wear = Wear(max_memory=100 * MIB)

    assert wear.worn_out(1, probe(100 * MIB)) == ""
    reason = wear.worn_out(1, probe(101 * MIB))
    assert "101 MiB" in reason
    assert "worker_max_memory=100 MiB" in reason


@pytest.mark.parametrize("wear", [Wear(max_events=1, max_memory=1), Wear(max_memory=1)])
def test_a_worker_that_has_done_nothing_is_not_replaced(wear: Wear) -> None:
    assert wear.worn_out(0, probe(MIB)) == ""
    assert too_grown_for(deliveries(1 * MIB * 32), 0, probe(1 << 40)) == ""


@pytest.mark.parametrize("gone", [None, probe(None)])
def test_a_process_that_cannot_be_looked_at_is_not_too_large(gone: Any) -> None:
    assert Wear(max_memory=1).worn_out(1, gone) == ""
    assert too_grown_for(deliveries(32 * MIB), 1, gone) == ""


# What is next.


def test_a_worker_that_is_large_already_does_not_begin_what_has_a_limit() -> None:
    reason = too_grown_for(deliveries(None, 100 * MIB), 1, probe(91 * MIB))

    assert reason == "growing to 91 MiB, before it runs resize (max_memory=100 MiB)"


def test_a_worker_that_is_small_enough_begins_it() -> None:
    assert too_grown_for(deliveries(100 * MIB), 1, probe(90 * MIB)) == ""


def test_what_has_no_limit_is_begun_by_any_and_nobody_looks() -> None:
    process = FakeProbe(1 << 50)

    assert too_grown_for(deliveries(None, None), 1, process) == ""  # type: ignore[arg-type]
    assert process.asked == 0


def test_a_worker_that_cannot_be_replaced_begins_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wear_module, "may_replace", lambda: False)

    assert too_grown_for(deliveries(32 * MIB), 1, probe(1 << 40)) == ""


@pytest.mark.parametrize(
    ("version", "alive", "expected"),
    [
        ((3, 11), True, True),
        ((3, 11), False, True),
        ((3, 12), True, True),
        ((3, 12), False, False),
        ((3, 13), False, True),
    ],
)
def test_workers_can_be_replaced_but_on_python_3_12_after_the_script(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], alive: bool, expected: bool
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    main = SimpleNamespace(is_alive=lambda: alive)
    monkeypatch.setattr(threading, "main_thread", lambda: main)

    assert may_replace() is expected
