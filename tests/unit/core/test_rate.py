# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest

from procbus import EventBus, SubscriptionError
from procbus.core.rate import parse_rate


@pytest.mark.parametrize(
    ("written", "count", "period_s"),
    [
        ("300/min", 300, 60.0),
        ("5/s", 5, 1.0),
        ("20/10s", 20, 10.0),
        (" 20 / 0.5 sec ", 20, 0.5),
        ("7/hour", 7, 3600.0),
        ("1000/Day", 1000, 86_400.0),
    ],
)
def test_a_rate_is_read(written: str, count: int, period_s: float) -> None:
    rate = parse_rate("rate", written)

    assert rate is not None
    assert (rate.count, rate.period_s, str(rate)) == (count, period_s, written)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rate": 5}, 'such as "300/min", "5/s"'),
        ({"rate": "5"}, 'such as "300/min", "5/s"'),
        ({"rate": "0/s"}, "must allow 1 to 1,000,000 events"),
        ({"rate": "5/0.001s"}, "in a period of 10 ms to one year"),
        ({"rate": "5/minuet"}, "unknown unit 'minuet'; did you mean minute?"),
        ({"rate": "5/parsec"}, "unknown unit 'parsec'"),
        ({"rate_key": str}, "give rate= too"),
        ({"rate": "5/s", "rate_key": "host"}, "must be a function of the event"),
        ({"rate": "5/s", "batch": 10}, "rate counts single events"),
        ({"rate": "5/s", "kind": "auto"}, "make a handler with a rate"),
        ({"rat": "5/s"}, "did you mean rate=?"),
    ],
)
def test_a_rate_that_makes_no_sense_is_refused(options: dict[str, Any], complaint: str) -> None:
    bus = EventBus(handlers=[])

    with pytest.raises(SubscriptionError, match=r"handler builtins\.len") as caught:
        bus.subscribe("word", len, **options)
    assert complaint in str(caught.value)
