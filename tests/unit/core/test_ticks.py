"""The times of a schedule: how they are written, and which comes next."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

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


def zoned(spec: str, zone: Any) -> CronLine:
    ticks = parse_ticks(spec, zone)
    assert isinstance(ticks, CronLine)
    return ticks


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        (BERLIN, ["04 01:00", "05 01:00"]),
        (ZoneInfo(BERLIN), ["04 01:00", "05 01:00"]),
        ("UTC", ["04 03:00", "05 03:00"]),
        (UTC, ["04 03:00", "05 03:00"]),
        (timezone(timedelta(hours=-8)), ["04 11:00", "05 11:00"]),
        ("Asia/Kolkata", ["03 21:30", "04 21:30"]),
    ],
)
def test_cron_line_follows_the_zone_that_is_given(
    zone: Any, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    since = datetime(2026, 7, 3, 12, tzinfo=UTC)
    assert times(zoned("0 3 * * *", zone), since, 2) == expected


def test_zone_tells_two_equal_lines_apart() -> None:
    assert zoned("0 3 * * *", BERLIN).written == "0 3 * * * Europe/Berlin"
    assert zoned("@daily", UTC).written == "0 0 * * * UTC"


@pytest.mark.parametrize("zone", [BERLIN, "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize("minute", [0, 15, 30, 59])
@pytest.mark.parametrize("hour", [0, 1, 2, 3])
def test_line_of_a_fixed_time_runs_once_a_day_through_a_year(
    zone: str, hour: int, minute: int
) -> None:
    ticks = zoned(f"{minute} {hour} * * *", zone)
    rules, at = ZoneInfo(zone), datetime(2026, 1, 1, tzinfo=ZoneInfo(zone)).timestamp() - 1
    for number in range(365):
        at = ticks.next_of(at)
        told = datetime.fromtimestamp(at, rules)
        assert told.date() == date(2026, 1, 1) + timedelta(days=number)
        late = timedelta(hours=told.hour, minutes=told.minute)
        late -= timedelta(hours=hour, minutes=minute)
        # Later only where the time is left out: then at the first moment that there is.
        assert timedelta(0) <= late <= timedelta(hours=1)


@pytest.mark.parametrize(
    ("spec", "zone", "sentence"),
    [
        (
            "5 min",
            BERLIN,
            "is for a line of cron, and an interval .* has no time zone",
        ),
        ("0 3 * * *", "Europe/Berln", "no known time zone; did you mean Europe/Berlin"),
        ("0 3 * * *", "Europe", "is no known time zone"),
        ("0 3 * * *", "../Berlin", "is no known time zone"),
        ("0 3 * * *", "", "is no known time zone"),
        ("0 3 * * *", 2, "must be the name of a time zone, such as .* not 2"),
        ("0 3 * * *", datetime.now(UTC), "must be the name of a time zone"),
    ],
)
def test_wrong_zone_is_refused_with_a_sentence(spec: str, zone: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        parse_ticks(spec, zone)
