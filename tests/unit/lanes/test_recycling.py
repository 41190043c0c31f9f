# SPDX-License-Identifier: MIT
"""When a worker is replaced between two deliveries, and when it is not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.handler import make_handler
from procbus.core.subscription import Subscription
from procbus.lanes import recycling as wear_module
from procbus.lanes.recycling import Wear, too_grown_for
from tests.parts import FakeLane, delivery_to, handle

MIB = 1 << 20


class FakeProbe:
    """A process of a given size; None when it is gone."""

    def __init__(self, rss: int | None) -> None:
        self._rss = rss
        self.asked = 0

    def own_bytes(self) -> int | None:
        self.asked += 1
        return self._rss


def probe(rss: int | None) -> Any:
    return FakeProbe(rss)


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


@pytest.mark.parametrize("gone", [None, probe(None)])
def test_a_process_that_cannot_be_looked_at_is_not_too_large(gone: Any) -> None:
    assert Wear(max_memory=1).worn_out(1, gone) == ""


# The next delivery.


def test_a_worker_that_did_not_want_a_delivery_was_too_large_for_it() -> None:
    handler = make_handler(handle, "t", kind="cpu", name="resize", max_memory=100 * MIB)
    reason = too_grown_for(delivery_to(Subscription(handler, FakeLane())))

    assert reason == "growing nearly to the max_memory of resize, 100 MiB, before it ran that"
