"""The options for a delay: what they accept, and the sentences about the rest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from procbus import OptionError
from procbus.core.when import When, when_of

NOON = datetime(2030, 6, 1, 12, 0)


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [(0, 0.0), (1.5, 1.5), ("5 min", 300.0), ("1.5h", 5_400.0), (timedelta(days=1), 86_400.0)],
)
def test_delay_is_seconds_a_text_or_a_timedelta(delay: Any, seconds: float) -> None:
    assert when_of(delay, None) == When(seconds, None)


def test_naive_datetime_is_local_time() -> None:
    assert when_of(None, NOON) == When(None, NOON.astimezone().timestamp())


def test_aware_datetime_is_the_same_moment_in_every_zone() -> None:
    far = timezone(timedelta(hours=9))
    one, other = NOON.replace(tzinfo=UTC), NOON.replace(tzinfo=UTC).astimezone(far)
    assert when_of(None, one) == when_of(None, other)


@pytest.mark.parametrize(
    ("delay", "at", "sentence"),
    [
        (1, NOON, "give delay= .* or at= .*, not both"),
        (-1, None, "delay must be from 0 to 100 years, not -1"),
        (float("nan"), None, "delay must be from 0 to 100 years, not nan"),
        (float("inf"), None, "delay must be from 0 to 100 years, not inf"),
        (True, None, "delay must be a number of seconds, .* not True"),
        ("5 minuets", None, "not '5 minuets'; did you mean minute?"),
        ("soon", None, 'delay must be a number of seconds, a text such as "5 min"'),
        (NOON, None, "delay is how long from now: for a time write at="),
        (None, 30, "at must be a datetime.datetime, not 30; .* write delay="),
        (None, datetime.max, "at must be at most 100 years from now"),
        (None, "12:00", "at must be a datetime.datetime, not '12:00'"),
    ],
)
def test_wrong_delay_is_refused_with_a_sentence(delay: Any, at: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        when_of(delay, at)
