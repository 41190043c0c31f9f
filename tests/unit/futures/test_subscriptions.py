# SPDX-License-Identifier: MIT
"""Subscriptions without routes, and the counts that they leave."""

import functools
import gc
import weakref

from procbus.core.handler import make_handler
from procbus.core.stats import collect_stats
from procbus.core.subscription import Subscription
from procbus.futures.subscriptions import MOST_NAMES, OTHER_CALLS, DirectSubscriptions
from tests.parts import FakeLane, subscription_of


def used(name: str, times: int = 1) -> Subscription:
    subscription = subscription_of(name=name)
    subscription.published = subscription.succeeded = times
    subscription.ran.add(0.5, times)
    subscription.average_s = 0.5
    return subscription


def test_retired_subscription_stays_counted_under_its_name() -> None:
    direct = DirectSubscriptions()
    first, second, other = used("same", 2), used("same", 3), used("other")
    for each in (first, second, other):
        direct.add(each)
    direct.retire(first)
    direct.retire(first)
    direct.retire(second)

    handlers = collect_stats(0, 0, direct.all(), {}).handlers
    assert handlers["same"].published == handlers["same"].succeeded == 5
    assert handlers["same"].average_s == 0.5
    assert handlers["other"].succeeded == 1
    assert sum(each.ran.count for each in direct.all()) == 6


def test_retired_subscription_is_freed() -> None:
    direct = DirectSubscriptions()
    function = functools.partial(print)
    freed = weakref.ref(function)
    subscription = Subscription(make_handler(function, object, name="gone"), FakeLane())
    direct.add(subscription)
    direct.retire(subscription)
    del subscription, function
    gc.collect()

    assert freed() is None


def test_names_without_end_are_counted_together() -> None:
    direct = DirectSubscriptions()
    for number in range(MOST_NAMES + 5):
        subscription = used(f"name {number}")
        direct.add(subscription)
        direct.retire(subscription)

    handlers = collect_stats(0, 0, direct.all(), {}).handlers
    assert len(handlers) == MOST_NAMES + 1
    assert handlers[OTHER_CALLS].succeeded == 5
