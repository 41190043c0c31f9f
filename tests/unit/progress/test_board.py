# SPDX-License-Identifier: MIT
"""The board: one thread shows all bars, and no display harms the work."""

import threading
from collections.abc import Sequence

import pytest

from procbus.progress.bar import Bar, BusFacts, Standing
from procbus.progress.board import Board
from tests.waits import eventually


class Told:
    """A display that notes how it is called."""

    every_s = 0.0

    def __init__(self, fails_in: str = "", error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.refreshed = threading.Event()
        self._fails_in = fails_in
        self._error = error or OSError("the terminal is gone")

    def refresh(self, bars: Sequence[Bar]) -> None:
        self._called("refresh")
        self.refreshed.set()

    def finish(self, bar: Bar) -> None:
        self._called(f"finish {bar.label}")

    def close(self) -> None:
        self._called("close")

    def _called(self, what: str) -> None:
        self.threads.add(threading.current_thread().name)
        self.calls.append(what)
        if self._fails_in and what.startswith(self._fails_in):
            self.refreshed.set()
            raise self._error


def a_bar(label: str = "events", closed: threading.Event | None = None) -> Bar:
    is_closed = (closed or threading.Event()).is_set
    return Bar(label, lambda: Standing(0, None, 0), BusFacts(tuple, tuple, is_closed))


def test_a_bar_is_refreshed_finished_and_closed_by_one_thread() -> None:
    board, display, bar = Board(most_share=1), Told(), a_bar()
    board.show(bar, display)
    assert display.refreshed.wait(60)
    board.end(bar)
    board.end(bar)
    assert [*dict.fromkeys(display.calls)] == ["refresh", "finish events", "close"]
    assert display.calls.count("close") == 1
    assert display.threads == {"procbus-progress"}


def test_a_display_stays_until_its_last_bar_ends() -> None:
    board, display, one, two = Board(most_share=1), Told(), a_bar("one"), a_bar("two")
    board.show(one, display)
    board.show(two, display)
    board.end(two)
    assert "close" not in display.calls
    board.end(one)
    assert display.calls[-2:] == ["finish one", "close"]


def test_a_bar_ends_with_its_bus() -> None:
    board, display, closed = Board(most_share=1), Told(), threading.Event()
    board.show(a_bar(closed=closed), display)
    closed.set()
    eventually(lambda: "close" in display.calls)


@pytest.mark.parametrize("fails_in", ["refresh", "finish", "close"])
@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(3), KeyboardInterrupt()])
def test_a_display_that_fails_is_reported_once_and_shown_no_more(fails_in, error, caplog) -> None:
    board, failing, other = Board(most_share=1), Told(fails_in, error), Told()
    bar, sound = a_bar(), a_bar("sound")
    board.show(sound, other)
    board.show(bar, failing)
    if fails_in == "refresh":
        assert failing.refreshed.wait(60)
    board.end(bar)
    calls = len(failing.calls)
    assert other.refreshed.wait(60)
    board.end(sound)
    assert len(failing.calls) == calls
    assert other.calls[-1] == "close"
    [record] = caplog.records
    assert "the display of progress failed" in record.getMessage()


def test_ending_a_bar_does_not_wait_for_a_display_that_hangs() -> None:
    class Hangs(Told):
        def finish(self, bar: Bar) -> None:
            go.wait(60)

    board, display, bar, go = Board(most_share=1, end_s=0.01), Hangs(), a_bar(), threading.Event()
    board.show(bar, display)
    board.end(bar)
    assert "close" not in display.calls
    go.set()
    eventually(lambda: "close" in display.calls)
