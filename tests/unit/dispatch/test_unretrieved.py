# SPDX-License-Identifier: MIT
"""The count of failures that were never looked at."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from procbus.core.delivery import Delivery
from procbus.dispatch.unretrieved import MOST_KEYS, Unseen
from tests.parts import delivery_to, raised, subscription_of


def failed(unseen: Unseen, handler: str, error: BaseException) -> Delivery:
    delivery = delivery_to(subscription_of(name=handler))
    outcome = raised(error)
    delivery.end(outcome)
    unseen.note_failed(delivery, outcome)
    return delivery


def test_without_failures_nothing_is_logged():
    assert Unseen().summary() is None


def test_single_failure():
    unseen = Unseen()
    failed(unseen, "shop.store", OSError())
    assert unseen.summary() == (
        "1 failure not looked at: shop.store 1 (OSError 1); see bus.dead_letters"
    )


def test_failures_are_reported_by_handler_and_error_the_most_frequent_first():
    unseen = Unseen()
    for _ in range(2):
        failed(unseen, "shop.store", OSError())
    for kind in (TimeoutError, ValueError, ValueError):
        failed(unseen, "shop.extract", kind())
    assert unseen.summary() == (
        "5 failures not looked at: shop.extract 3 (ValueError 2, TimeoutError 1), "
        "shop.store 2 (OSError 2); see bus.dead_letters"
    )


def test_asking_for_the_error_is_a_look_and_counts_once():
    unseen = Unseen()
    seen = failed(unseen, "shop.store", OSError())
    failed(unseen, "shop.store", OSError())
    for _ in range(2):
        assert isinstance(seen.exception(), OSError)
    unseen.note_seen(seen)
    assert "1 failure not looked at" in (unseen.summary() or "")


def test_a_failure_of_another_bus_is_not_counted_off():
    unseen, other = Unseen(), Unseen()
    failed(unseen, "shop.store", OSError())
    unseen.note_seen(failed(other, "shop.store", OSError()))
    assert unseen.summary() is not None


def test_memory_for_failures_is_bounded_and_their_total_right():
    unseen = Unseen()
    failures = [failed(unseen, f"h{number}", OSError()) for number in range(MOST_KEYS + 50)]
    summary = unseen.summary() or ""
    assert summary.startswith(f"{MOST_KEYS + 50} failures not looked at: other ")
    assert "other handlers 50 (other errors 50), h0 1 (OSError 1)" in summary
    assert f", {MOST_KEYS + 1 - 10} more handlers;" in summary
    for delivery in failures:
        unseen.note_seen(delivery)
    assert unseen.summary() is None


def test_the_errors_of_one_handler_that_are_named_are_bounded():
    unseen = Unseen()
    for number in range(12):
        failed(unseen, "shop.store", type(f"Error{number}", (Exception,), {})())
    assert "Error9 1, 2 more kinds);" in (unseen.summary() or "")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_unseen_failures_are_all_failures_less_the_seen_ones(failures):
    unseen = Unseen()
    deliveries = [failed(unseen, handler, OSError()) for handler, _ in failures]
    for delivery, (_, looked) in zip(deliveries, failures, strict=True):
        if looked:
            unseen.note_seen(delivery)
    left = Counter(handler for handler, looked in failures if not looked)
    summary = unseen.summary() or ""
    assert bool(summary) == bool(left)
    assert all(f"{handler} {count} (OSError {count})" in summary for handler, count in left.items())
