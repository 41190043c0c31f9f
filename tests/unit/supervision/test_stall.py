# SPDX-License-Identifier: MIT
"""Stalled workers, and workers that are only slow."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.supervision.stall import LEAST_CPU_S, STALL_WINDOW_S, Activity

#: As often as the supervisor looks.
STEP_S = 0.5


def noted(seconds: float, cpu_rate: float = 0.0, io_rate: float = 0.0) -> Activity:
    """Activity of a worker that was looked at for some seconds in one delivery."""
    activity = Activity()
    for step in range(int(seconds / STEP_S) + 1):
        at = step * STEP_S
        activity.note(at, 1.0 + cpu_rate * at, 1000 + int(io_rate * at), "delivery")
    return activity


def test_worker_without_a_core_is_not_stalled() -> None:
    activity = Activity()
    at = 0.0
    while not activity.quiet:
        at += 0.5
        activity.note(at, 1.0, 0, "a")
    activity.note_starved(at)
    while at < 3 * STALL_WINDOW_S:
        at += 0.5
        activity.note(at, 1.0, 0, "a")
        if activity.quiet:
            activity.note_starved(at)
        assert not activity.stalled(at)


def test_handler_that_reports_is_not_stalled_until_a_window_after_its_last_report() -> None:
    activity = Activity()
    for step in range(40):
        at = step * STEP_S
        activity.note(at, 1.0, 0, "a")
        activity.note_report(at, min(at, 10.0))
        assert activity.stalled(at) == (at >= 10.0 + STALL_WINDOW_S + STEP_S), at


def test_a_handler_that_does_nothing_is_stalled() -> None:
    assert noted(2.0).stalled(2.0)
    assert noted(60.0).stalled(60.3)


def test_handler_is_not_stalled_before_a_window_has_passed() -> None:
    assert not noted(1.5).stalled(1.5)
    assert not noted(1.5).stalled(2.5), "nobody has looked since"
    assert not Activity().stalled(10.0)


def test_worker_that_gains_cpu_is_slow() -> None:
    assert not noted(60.0, cpu_rate=0.02).stalled(60.0)
    assert not noted(60.0, cpu_rate=1.0).stalled(60.0)


def test_worker_that_polls_ten_times_a_second_is_stalled() -> None:
    assert noted(60.0, cpu_rate=10 * 50e-6).stalled(60.0)


def test_the_rounding_of_the_kernel_is_no_progress() -> None:
    activity = Activity()
    for step in range(5):
        # User and system time both stepped, by 10 ms each; as floats that is a bit more than 20 ms.
        activity.note(step * STEP_S, 1.01 if step < 4 else 1.03, 0, "delivery")
    assert activity.stalled(2.0)


def test_worker_that_reads_or_writes_is_slow() -> None:
    assert not noted(60.0, io_rate=1.0).stalled(60.0)


def test_input_and_output_are_asked_for_only_while_it_is_quiet() -> None:
    activity = Activity()
    for step, io_bytes in enumerate([0, 0, 500, 500, 500, 500]):
        activity.note(step * STEP_S, 1.0, io_bytes, "delivery")
    assert not activity.stalled(2.5), "what it did before it was asked is not known"

    activity.note(3.0, 1.0, 500, "delivery")
    assert activity.stalled(3.0)


def test_worker_that_hardly_gained_cpu_is_quiet() -> None:
    activity = Activity()
    assert not activity.quiet
    activity.note(0.0, 1.0, 0, "delivery")
    assert not activity.quiet, "only one note"
    activity.note(0.5, 1.01, 0, "delivery")
    assert activity.quiet
    activity.note(1.0, 1.5, 0, "delivery")
    assert not activity.quiet
    activity.note(1.5, 1.5, 0, "another")
    assert not activity.quiet


def test_worker_with_little_of_a_crowded_core_is_not_quiet_for_long() -> None:
    activity = noted(1.0, cpu_rate=0.03)
    assert not activity.quiet


def test_quiet_worker_is_looked_at_closely_now_and_then() -> None:
    activity = Activity()
    looks = []
    for step in range(121):
        activity.note(step * STEP_S, 1.0, 0, "delivery")
        if activity.quiet:
            looks.append(step * STEP_S)
            activity.note_tree(step * STEP_S, 5.0)

    spans = [after - before for before, after in pairwise(looks)]
    assert looks[0] == STEP_S
    assert spans[0] == STALL_WINDOW_S + STEP_S, "more than a window, so that two looks are enough"
    assert set(spans[1:]) == {2 * STALL_WINDOW_S + STEP_S}, "it is stalled by then"


@pytest.mark.parametrize(("tree_rate", "stalled"), [(0.0, True), (0.5, False)])
def test_worker_that_waits_for_a_busy_subprocess_is_slow(tree_rate: float, stalled: bool) -> None:
    activity = Activity()
    for step in range(10):
        activity.note(step * STEP_S, 1.0, 0, "delivery")
        if activity.quiet:
            activity.note_tree(step * STEP_S, 5.0 + tree_rate * step * STEP_S)
    assert activity.stalled(4.5) == stalled


def test_a_descendant_that_ends_and_takes_its_cpu_along_is_a_change() -> None:
    activity = Activity()
    for step in range(6):
        activity.note(step * STEP_S, 1.0, 0, "delivery")
        activity.note_tree(step * STEP_S, 5.0 if step < 5 else 1.0)
    assert not activity.stalled(2.5)


def test_the_next_delivery_begins_anew() -> None:
    activity = noted(10.0)
    activity.note(10.5, 1.0, 1000, "another")
    assert not activity.stalled(10.5)
    activity.note(12.5, 1.0, 1000, "another")
    assert activity.stalled(12.5)


def test_worker_is_not_stalled_between_two_deliveries() -> None:
    activity = Activity()
    for step in range(10):
        activity.note(step * STEP_S, 1.0, 1000, None)
        activity.note_tree(step * STEP_S, 1.0)
    assert not activity.stalled(4.5)
    assert not activity.quiet


class Note(NamedTuple):
    at: float
    cpu_s: float
    io_bytes: int
    tree_cpu_s: float | None
    key: int


@st.composite
def histories(draw: st.DrawFn) -> list[Note]:
    notes: list[Note] = []
    at = cpu_s = tree_s = 0.0
    io_bytes, key = 1, 0
    for _ in range(draw(st.integers(1, 25))):
        at += draw(st.sampled_from([0.1, 0.5, 0.51, 2.0, 3.0]))
        cpu_s += draw(st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.02, 0.3]))
        tree_s += draw(st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3]))
        io_bytes += draw(st.sampled_from([0, 0, 0, 100]))
        key += draw(st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1]))
        ask = draw(st.booleans())
        look = draw(st.booleans())
        notes.append(Note(at, cpu_s, io_bytes if ask else 0, tree_s if look else None, key))
    return notes


def unchanged(readings: list[tuple[float, float]], least: float) -> bool:
    """Whether a figure did not change from the last reading a window ago to the last of all."""
    last_at, last = readings[-1]
    old = [value for at, value in readings if last_at - at >= STALL_WINDOW_S]
    return bool(old) and last - old[-1] <= least


@given(histories())
def test_worker_without_any_change_is_stalled(history: list[Note]) -> None:
    activity = Activity()
    for note in history:
        activity.note(note.at, note.cpu_s, note.io_bytes, note.key)
        if note.tree_cpu_s is not None:
            activity.note_tree(note.at, note.tree_cpu_s)

    last = history[-1]
    present = [note for note in history if note.key == last.key]
    cpu = [(note.at, note.cpu_s) for note in present]
    tree = [(note.at, note.tree_cpu_s) for note in present if note.tree_cpu_s is not None]
    io: list[tuple[float, float]] = [(note.at, note.io_bytes) for note in present if note.io_bytes]
    expected = (
        unchanged(cpu, LEAST_CPU_S)
        and (not tree or unchanged(tree, LEAST_CPU_S))
        and (not io or unchanged(io, 0))
    )
    assert activity.stalled(last.at) == expected
    assert activity.stalled(last.at + STALL_WINDOW_S / 2) == expected
    assert not activity.stalled(last.at + STALL_WINDOW_S + 0.1), "too long ago to say"


@given(st.floats(0.02, 64.0), st.floats(0.1, 0.9), st.integers(1, 200))
def test_worker_with_two_percent_of_a_core_is_never_stalled(
    rate: float, step_s: float, steps: int
) -> None:
    activity = Activity()
    for step in range(steps):
        at = step * step_s
        activity.note(at, rate * at, 0, "delivery")
        assert not activity.stalled(at)
