# SPDX-License-Identifier: MIT
"""When a worker is replaced between two deliveries, and when it is not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.handler import make_handler
from procbus.core.subscription import Subscription
from procbus.lanes.recycling import RecyclingPolicy, too_grown_for
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
    recycling = RecyclingPolicy()

    assert not recycling.limited
    assert recycling.left(10**9) is None
    assert recycling.reason_to_replace(10**9, probe(1 << 50)) == ""


@given(st.integers(1, 100), st.integers(0, 200))
def test_a_worker_does_no_more_than_its_number_of_events(most: int, done: int) -> None:
    recycling = RecyclingPolicy(max_events=most)
    reason = recycling.reason_to_replace(done, None)

    assert bool(reason) == (done >= most)
    if reason:
        assert reason == f"{done} events (max_events_per_worker)"
    else:
        left = recycling.left(done)
        assert left is not None
        assert left >= 1
        assert done + left == most


def test_a_worker_that_cannot_be_replaced_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # With nothing left for it, it would wait for ever for a batch that it may have.
    recycling = RecyclingPolicy(max_events=3, max_memory=MIB, may_replace=lambda: False)

    assert recycling.reason_to_replace(3, probe(2 * MIB)) == ""
    left = recycling.left(3)
    assert left is None or left > 0


# Memory.


def test_worker_that_grew_too_large_is_replaced_and_the_reason_says_so() -> None:
    recycling = RecyclingPolicy(max_memory=100 * MIB)

    assert recycling.reason_to_replace(1, probe(100 * MIB)) == ""
    reason = recycling.reason_to_replace(1, probe(101 * MIB))
    assert "101 MiB" in reason
    assert "worker_max_memory=100 MiB" in reason


@pytest.mark.parametrize(
    "recycling", [RecyclingPolicy(max_events=1, max_memory=1), RecyclingPolicy(max_memory=1)]
)
def test_a_worker_that_has_done_nothing_is_not_replaced(recycling: RecyclingPolicy) -> None:
    assert recycling.reason_to_replace(0, probe(MIB)) == ""


@pytest.mark.parametrize("gone", [None, probe(None)])
def test_a_process_that_cannot_be_looked_at_is_not_too_large(gone: Any) -> None:
    assert RecyclingPolicy(max_memory=1).reason_to_replace(1, gone) == ""


# The next delivery.


def test_a_worker_that_did_not_want_a_delivery_was_too_large_for_it() -> None:
    handler = make_handler(handle, "t", kind="cpu", name="resize", max_memory=100 * MIB)
    reason = too_grown_for(delivery_to(Subscription(handler, FakeLane())))

    assert reason == "growing nearly to the max_memory of resize (100 MiB), before it ran resize"
