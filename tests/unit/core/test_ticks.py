"""The times of a schedule: how they are written, and which comes next."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import OptionError
from procbus.core.ticks import CronLine, Interval, parse_ticks

BERLIN = "Europe/Berlin"


@pytest.mark.parametrize(
    ("spec", "written"),
    [
        ("5 min", "5 min"),
        (300, "5 min"),
        (timedelta(minutes=5), "5 min"),
        ("90 s", "90 s"),
        (0.25, "0.25 s"),
        ("36h", "36 h"),
        ("7 days", "1 week"),
        ("0 9 * * mon-fri", "0 9 * * mon-fri"),
        (" 0  9 * *  1 ", "0 9 * * 1"),
        ("@daily", "0 0 * * *"),
    ],
)
def test_equal_times_are_written_alike(spec: Any, written: str) -> None:
    assert parse_ticks(spec).written == written


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("every 5 min", "is no time; leave out \"every\": '5 min'"),
        ("hourly", "is no time; did you mean '@hourly'"),
        ("5 minuets", "is no time; did you mean minute"),
        ("0 9 * *", "is no time; a cron line has five fields, .* and this 4"),
        ("61 * * * *", "is no cron line: bad minute. The fields are minute, hour,"),
        ("* * 31 2 *", "is no cron line: bad day-of-month"),
        ("@dayly", "is no time; did you mean @daily"),
        (0, "must be from 10 ms to 100 years"),
        (-5, "must be from 10 ms to 100 years"),
        (float("nan"), "must be from 10 ms to 100 years"),
        (None, r"every\(None, ...\) is no time. Write how long"),
        ("", "is no time. Write how long"),
    ],
)
def test_wrong_times_are_refused_with_a_sentence(spec: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        parse_ticks(spec)


def test_cron_line_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(OptionError, match=r"needs cronsim: pip install 'procbus\[cron\]'"):
        parse_ticks("0 9 * * *")
    assert parse_ticks("5 min").written == "5 min"


@given(
    st.floats(0.01, 1e6),
    st.floats(0, 1e9),
    st.one_of(st.floats(0, 10), st.floats(0, 1e7)),
)
def test_interval_keeps_its_phase_however_many_ticks_are_left_out(
    seconds: float, last: float, gone: float
) -> None:
    ticks = Interval(seconds)
    now = last + gone
    after = ticks.after(last, now)
    assert after > now or after == now == last + seconds
    steps = (after - last) / seconds
    assert steps == pytest.approx(round(steps), rel=1e-6, abs=1e-4)
    assert after - now <= seconds * (1 + 1e-6) + 1e-6
    assert ticks.next_of(ticks.latest(last, now)) == pytest.approx(after, rel=1e-9)


def line(spec: str, zone: str, monkeypatch: pytest.MonkeyPatch) -> CronLine:
    monkeypatch.setenv("TZ", zone)
    ticks = parse_ticks(spec)
    assert isinstance(ticks, CronLine)
    return ticks


def times(ticks: CronLine, since: datetime, count: int) -> list[str]:
    found = []
    at = since.timestamp()
    for _ in range(count):
        at = ticks.next_of(at)
        found.append(datetime.fromtimestamp(at, UTC).strftime("%d %H:%M"))
    return found


def test_cron_line_is_in_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = line("30 9 * * mon-fri", BERLIN, monkeypatch)
    assert times(ticks, datetime(2026, 7, 3, 12, tzinfo=UTC), 2) == ["06 07:30", "07 07:30"]


def test_cron_line_runs_once_where_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2026-10-25 at 03:00 local time it is 02:00 again.
    ticks = line("30 2 * * *", BERLIN, monkeypatch)
    found = times(ticks, datetime(2026, 10, 24, 12, tzinfo=UTC), 2)
    assert [day for day, _ in map(str.split, found)] == ["25", "26"]


def test_cron_line_runs_where_its_hour_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2026-03-29 at 02:00 local time it is 03:00.
    ticks = line("30 2 * * *", BERLIN, monkeypatch)
    found = times(ticks, datetime(2026, 3, 28, 12, tzinfo=UTC), 2)
    assert [day for day, _ in map(str.split, found)] == ["29", "30"]


def test_line_of_every_hour_runs_in_both_hours_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = line("0 * * * *", BERLIN, monkeypatch)
    found = times(ticks, datetime(2026, 10, 24, 23, 30, tzinfo=UTC), 3)
    assert found == ["25 00:00", "25 01:00", "25 02:00"]


@pytest.mark.parametrize("zone", ["Nowhere/Land", "EST5EDT,M3.2.0,M11.1.0"])
def test_unknown_zone_leaves_the_offset_of_the_machine(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = line("*/10 * * * *", zone, monkeypatch)
    since = datetime(2026, 6, 1, 12, 5, tzinfo=UTC)
    assert times(ticks, since, 1) == ["01 12:10"]


def test_missed_ticks_of_a_cron_line_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = line("0 * * * *", "UTC", monkeypatch)
    last = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
    now = last + 5.5 * 3_600
    assert ticks.after(last, now) == ticks.next_of(ticks.latest(last, now)) == last + 6 * 3_600
