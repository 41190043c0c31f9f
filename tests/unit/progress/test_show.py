# SPDX-License-Identifier: MIT
"""The choice of a display, and bars that a callable makes."""

import asyncio
import io
import sys
import threading
from functools import partial
from typing import Any

import pytest
import tqdm

from procbus import EventBus, OptionError
from procbus.progress.bar import Bar, BusFacts, LaneCounts, Standing
from procbus.progress.board import board
from procbus.progress.plain import PlainDisplay
from procbus.progress.show import check_progress, is_wanted, showing
from procbus.progress.tqdm_like import MadeDisplay
from procbus.testing import InlineBus

FACTS = BusFacts(lambda: [LaneCounts("cpu", 2, 40)], tuple, lambda: False)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROCBUS_PROGRESS", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(
    ("wish", "option", "wanted"),
    [
        *((None, False, False), (None, True, True), (None, tqdm.tqdm, True)),
        *(("0", True, False), ("OFF", tqdm.tqdm, False), ("false", True, False)),
        *(("1", False, True), ("on", False, True), ("plain", False, True), ("", False, False)),
    ],
)
def test_the_environment_overrides_the_option(monkeypatch, wish, option, wanted) -> None:
    if wish is not None:
        monkeypatch.setenv("PROCBUS_PROGRESS", wish)
    assert is_wanted(option) is wanted


@pytest.mark.parametrize("progress", [None, 1, "yes", 0.5])
def test_progress_that_is_no_callable_is_refused(progress) -> None:
    with pytest.raises(OptionError, match="progress must be True, False or a callable"):
        check_progress(progress)


@pytest.mark.parametrize("total", [-1, 1.5, "3", True])
def test_a_total_that_is_no_number_is_refused(total) -> None:
    with EventBus([]) as bus, pytest.raises(OptionError, match="total must be a whole number"):
        bus.stream([], total=total)


def chosen(monkeypatch: pytest.MonkeyPatch, stderr: object) -> object:
    monkeypatch.setattr(sys, "stderr", stderr)
    seen: list[object] = []
    monkeypatch.setattr(board, "show", lambda bar, display: seen.append(display))
    with showing(True, "events", lambda: Standing(0, None, 0), FACTS):
        pass
    return seen[0]


def test_a_terminal_gets_bars_and_any_other_place_plain_lines(monkeypatch) -> None:
    pytest.importorskip("rich")
    from procbus.progress.terminal import TerminalDisplay

    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(chosen(monkeypatch, Terminal()), TerminalDisplay)
    assert isinstance(chosen(monkeypatch, io.StringIO()), PlainDisplay)
    assert isinstance(chosen(monkeypatch, None), PlainDisplay), "pythonw has no stderr"


@pytest.mark.parametrize(("name", "value"), [("PROCBUS_PROGRESS", "plain"), ("TERM", "dumb")])
def test_plain_lines_in_a_terminal(monkeypatch, name, value) -> None:
    monkeypatch.setenv(name, value)
    assert isinstance(chosen(monkeypatch, Terminal()), PlainDisplay)


def test_a_terminal_without_rich_gets_plain_lines(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "procbus.progress.terminal", None)
    assert isinstance(chosen(monkeypatch, Terminal()), PlainDisplay)


def test_plain_lines_survive_a_stderr_that_is_closed(monkeypatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with EventBus([]) as bus:
        bus.subscribe(int, abs)
        assert len(list(bus.stream(range(5), progress=True))) == 5


class Made:
    """A bar as simple as one may be."""

    def __init__(self, total: int | None) -> None:
        self.made_with = total
        self.done = 0
        self.closed = threading.Event()

    def update(self, n: int) -> None:
        self.done += n

    def close(self) -> None:
        self.closed.set()


class FullMade(Made):
    """A bar with all that tqdm has."""

    def __init__(self, total: int | None) -> None:
        super().__init__(total)
        self.total = total
        self.postfix: dict[str, object] = {}

    def set_postfix(self, **postfix: object) -> None:
        self.postfix = postfix


def test_a_made_bar_is_given_what_it_has_room_for() -> None:
    tally = Standing(3, 10, 1)
    bar = Bar("events", lambda: tally, FACTS)
    simple, full = Made(10), FullMade(10)
    for made in (simple, full):
        display = MadeDisplay(made, 10)
        tally = Standing(3, 10, 1)
        display.refresh([bar])
        tally = Standing(7, 12, 2)
        display.refresh([bar])
        assert made.done == 7
    assert full.total == 12
    assert full.postfix == {"failed": 2, "cpu": "2+40"}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("make_bus", [partial(EventBus, []), partial(InlineBus, [])])
def test_a_stream_tells_the_bar_of_a_callable(make_bus, ordered) -> None:
    made: list[FullMade] = []

    def make(total: int | None) -> FullMade:
        made.append(FullMade(total))
        return made[-1]

    def fail_on_three(number: int) -> None:
        if number % 10 == 3:
            raise ValueError(number)

    with make_bus() as bus:
        bus.subscribe(int, fail_on_three)
        for source, total in ((range(50), None), (iter(range(50)), 50), (iter(range(50)), None)):
            list(bus.stream(source, progress=make, total=total, ordered=ordered))
        assert [each.made_with for each in made] == [50, 50, None]
        for receipt in bus.stream(range(50), progress=make, ordered=ordered):
            if receipt.event == 20:
                break
        del receipt
        assert len(bus.dead_letters) >= 15
    for each in made:
        assert each.closed.wait(60)
    assert [each.done for each in made[:3]] == [50, 50, 50]
    assert [each.postfix["failed"] for each in made[:3]] == [5, 5, 5]


def test_a_callable_that_fails_harms_no_stream(caplog) -> None:
    def broken(total: int | None) -> Made:
        raise RuntimeError("no display")

    def incomplete(total: int | None) -> Any:
        return total

    with EventBus([]) as bus:
        bus.subscribe(int, abs)
        assert len(list(bus.stream(range(5), progress=broken))) == 5
        assert len(list(bus.stream(range(5), progress=incomplete))) == 5
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("progress cannot be shown")
    assert messages[1].startswith("the display of progress failed")


@pytest.mark.parametrize("make", [tqdm.tqdm, partial(tqdm.tqdm, desc="pages", leave=False)])
def test_tqdm_itself_is_such_a_callable(make, capsys, monkeypatch) -> None:
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # no thread that stays
    tqdm.tqdm.set_lock(threading.RLock())  # no semaphore that stays
    with EventBus([]) as bus:
        bus.subscribe(int, abs)
        list(bus.stream(range(50), progress=make))
        with bus.executor("io") as calls:
            assert list(calls.map(abs, range(50), progress=make)) == [*range(50)]
        with bus.progress(make, total=20):
            for number in range(20):
                bus.publish(number)
            bus.drain(progress=make)
    assert "50/50" in capsys.readouterr().err


def test_a_map_counts_calls_and_their_failures() -> None:
    made: list[FullMade] = []

    def make(total: int | None) -> FullMade:
        made.append(FullMade(total))
        return made[-1]

    with EventBus([], cpu_workers=1) as bus, bus.executor("cpu") as calls:
        assert [*calls.map(pow, range(7), range(9), progress=make, chunksize=3)] == [
            n**n for n in range(7)
        ]
        results = calls.map(divmod, [1, 1], iter([1, 0]), progress=make, total=2)
        with pytest.raises(ZeroDivisionError):
            list(results)
        calls.map(abs, [1], progress=make)  # these results are never asked for
    for each in made:
        assert each.closed.wait(60)
    assert [(each.made_with, each.done) for each in made[:2]] == [(7, 7), (2, 2)]
    assert made[1].postfix["failed"] == 1


def test_a_phase_counts_what_handlers_publish() -> None:
    made: list[FullMade] = []

    def make(total: int | None) -> FullMade:
        made.append(FullMade(total))
        return made[-1]

    def spread(number: int) -> None:
        for each in range(number):
            bus.publish("part", each)

    with EventBus([]) as bus:
        bus.subscribe(int, spread)
        bus.subscribe("part", abs)
        bus.publish(3).wait(60)
        bus.drain()
        with bus.progress(make):
            for _ in range(5):
                bus.publish(4)
            bus.drain()
    assert (made[0].done, made[0].total) == (25, 25)


def test_a_stream_in_an_event_loop_tells_the_bar_of_a_callable() -> None:
    made: list[FullMade] = []

    def make(total: int | None) -> FullMade:
        made.append(FullMade(total))
        return made[-1]

    def fail_on_three(number: int) -> None:
        if number == 3:
            raise ValueError(number)

    async def stream_all() -> None:
        async with EventBus([]) as bus:
            bus.subscribe(int, fail_on_three)
            async for _ in bus.astream(iter(range(50)), progress=make, total=50):
                pass
            async for receipt in bus.astream(range(50), progress=make, ordered=True):
                if receipt.event == 20:
                    break

    asyncio.run(stream_all())
    for each in made:
        assert each.closed.wait(60)
    assert [(each.made_with, each.postfix["failed"]) for each in made] == [(50, 1), (50, 1)]
    assert [each.done for each in made] == [50, 21]
