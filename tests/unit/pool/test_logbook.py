"""The logbook: at whatever moment its writer dies, it tells finished deliveries from others."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.pool.logbook import CAPACITY, SEGMENTS, Logbook
from tests.waits import eventually


@pytest.fixture
def logbook() -> Iterator[Logbook]:
    logbook = Logbook.create()
    yield logbook
    logbook.close()


@contextmanager
def child_that_runs(function: Callable[[], object]) -> Iterator[None]:
    """Run a function in a child of this process, which is killed at the end of the block."""
    pid = os.fork()
    if not pid:
        try:
            function()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_new_logbook_says_that_nothing_is_begun(logbook: Logbook) -> None:
    page = logbook.read()
    assert (page.batch, page.running, page.done, page.sent, page.unsent) == (0, False, 0, 0, b"")
    assert logbook.running() is None


def test_logbook_names_the_running_delivery_and_its_start(logbook: Logbook) -> None:
    logbook.open_batch(7)
    assert logbook.running() is None
    logbook.begin(0, 12.5)
    assert logbook.running() == (7, 0, 12.5)
    assert logbook.finish(1, b"r0")
    assert logbook.running() is None
    logbook.begin(1, 13.5)
    assert logbook.running() == (7, 1, 13.5)


def test_running_delivery_is_read_whole_while_the_worker_goes_on(logbook: Logbook) -> None:
    most = 4

    def work() -> None:
        for batch in range(1, 1 << 40):  # it is killed
            logbook.open_batch(batch)
            for index in range(batch % most):
                logbook.begin(index, batch * most + index)
                logbook.finish(index + 1, b"")

    with child_that_runs(work):
        eventually(lambda: logbook.running() is not None)
        found = [logbook.running() for _ in range(100_000)]
    seen = [at for at in found if at is not None]
    assert all(0 <= index < batch % most for batch, index, _ in seen)
    assert all(since == batch * most + index for batch, index, since in seen)


def test_finished_results_are_kept_until_they_are_sent(logbook: Logbook) -> None:
    logbook.open_batch(1)
    for index in range(3):
        logbook.begin(index, 1.0)
        assert logbook.finish(index + 1, b"%d" % index)
    page = logbook.read()
    assert (page.done, page.sent, page.unsent) == (3, 0, b"012")
    logbook.sent(3)
    page = logbook.read()
    assert (page.done, page.sent, page.unsent) == (3, 3, b"")


def test_a_new_batch_forgets_the_last(logbook: Logbook) -> None:
    logbook.open_batch(1)
    logbook.begin(0, 1.0)
    logbook.finish(1, b"x")
    logbook.open_batch(2)
    page = logbook.read()
    assert (page.batch, page.at, page.done, page.sent, page.unsent) == (2, -1, 0, 0, b"")


def test_a_result_that_finds_no_room_is_not_kept_and_counts_as_running(logbook: Logbook) -> None:
    logbook.open_batch(1)
    logbook.begin(0, 1.0)
    assert logbook.finish(1, bytes(CAPACITY - 1))
    logbook.begin(1, 2.0)
    assert not logbook.finish(2, b"xy")
    assert logbook.running() == (1, 1, 2.0)
    assert logbook.read().done == 1
    assert logbook.finish(2, b"x")
    assert len(logbook.read().unsent) == CAPACITY


def test_another_process_reads_the_entries_of_a_dead_one(logbook: Logbook) -> None:
    pid = os.fork()
    if not pid:
        try:
            logbook.open_batch(3)
            logbook.begin(0, 1.5)
            logbook.finish(1, b"done")
            logbook.begin(1, 2.5)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    page = logbook.read()
    assert (page.batch, page.at, page.running, page.done) == (3, 1, True, 1)
    assert (page.since, page.unsent) == (2.5, b"done")


def test_close_may_be_called_twice() -> None:
    logbook = Logbook.create()
    logbook.close()
    logbook.close()


@given(st.lists(st.one_of(st.binary(max_size=20), st.just(None)), max_size=30))
def test_unsent_results_always_lie_between_sent_and_done(steps: list[bytes | None]) -> None:
    """None sends the kept results; anything else is the result of the next delivery."""
    logbook = Logbook.create()
    try:
        logbook.open_batch(1)
        results: list[bytes] = []
        sent = 0
        for step in steps:
            if step is None:
                sent = len(results)
                logbook.sent(sent)
            else:
                logbook.begin(len(results), 1.0)
                assert logbook.finish(len(results) + 1, step)
                results.append(step)
            page = logbook.read()
            assert (page.done, page.sent, page.running) == (len(results), sent, False)
            assert page.unsent == b"".join(results[sent:])
    finally:
        logbook.close()


@given(
    batch=st.integers(0, 2**63 - 1),
    done=st.integers(0, 2**63 - 2),
    since=st.floats(0, allow_nan=False, allow_infinity=False),
)
def test_numbers_of_a_logbook_are_read_unchanged_up_to_their_limits(
    batch: int, done: int, since: float
) -> None:
    logbook = Logbook.create()
    try:
        logbook.open_batch(batch)
        logbook.begin(done, since)
        assert logbook.running() == (batch, done, since)
        assert logbook.finish(done + 1, b"result")
        page = logbook.read()
        assert (page.batch, page.at, page.done, page.unsent) == (batch, done, done + 1, b"result")
        logbook.sent(done + 1)
        assert logbook.read().sent == done + 1
    finally:
        logbook.close()


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_number_beyond_its_limit_is_an_error_and_not_another(
    logbook: Logbook, number: int
) -> None:
    with pytest.raises(ValueError, match="invalid value"):
        logbook.open_batch(number)


@pytest.mark.parametrize(("size", "kept"), [(CAPACITY, True), (CAPACITY + 1, False)])
def test_a_result_as_long_as_there_is_room_is_kept(logbook: Logbook, size: int, kept: bool) -> None:
    logbook.open_batch(1)
    logbook.begin(0, 1.0)
    assert logbook.finish(1, bytes(size)) is kept
    assert len(logbook.unsent()) == (size if kept else 0)


# Results that are left in the logbook, and read there.


@pytest.fixture
def shared() -> Iterator[Logbook]:
    logbook = Logbook.create(segments=SEGMENTS)
    logbook.open_batch(1)
    yield logbook
    logbook.close()


def finish(logbook: Logbook, done: int, result: bytes) -> None:
    logbook.begin(done - 1, 1.0)
    assert logbook.finish(done, result)


def test_a_logbook_of_one_segment_leaves_nothing_there(logbook: Logbook) -> None:
    logbook.open_batch(1)
    finish(logbook, 1, b"result")
    assert not logbook.shares
    assert logbook.place() is None


def test_results_that_are_left_stay_while_others_are_written(shared: Logbook) -> None:
    assert shared.shares
    finish(shared, 1, b"first")
    place = shared.place()
    assert place is not None
    shared.sent(1, left=True)
    page = shared.read()
    assert (page.done, page.sent, page.unsent) == (1, 1, b"")
    finish(shared, 2, b"second")
    assert shared.read().unsent == b"second"
    assert bytes(shared.results(*place)) == b"first"


def test_results_left_in_place_are_not_overwritten_before_they_are_taken(shared: Logbook) -> None:
    places = []
    done = 0
    while (place := shared.place()) is not None:
        done += 1
        finish(shared, done, b"%d" % done * 50_000)
        place = shared.place()
        assert place is not None
        places.append(place)
        shared.sent(done, left=True)
    assert len(places) == SEGMENTS - 1
    finish(shared, done + 1, b"x" * CAPACITY)
    found = [bytes(shared.results(*place)) for place in places]
    assert found == [b"%d" % number * 50_000 for number in range(1, SEGMENTS)]
    shared.taken()
    assert shared.place() is not None


def test_results_sent_by_pipe_leave_the_segment_as_it_is(shared: Logbook) -> None:
    finish(shared, 1, b"sent")
    first = shared.place()
    shared.sent(1)
    finish(shared, 2, b"left")
    assert shared.place() == first


@given(st.lists(st.sampled_from(["pipe", "leave", "take"]) | st.binary(max_size=9), max_size=60))
def test_unsent_results_lie_between_sent_and_done_in_any_segment(
    steps: list[str | bytes],
) -> None:
    logbook = Logbook.create(segments=SEGMENTS)
    try:
        logbook.open_batch(1)
        results: list[bytes] = []
        left: list[tuple[tuple[int, int], bytes]] = []
        sent = 0
        for step in steps:
            if isinstance(step, bytes):
                finish(logbook, len(results) + 1, step)
                results.append(step)
            elif step == "take":
                if left:
                    place, expected = left.pop(0)
                    assert bytes(logbook.results(*place)) == expected
                    logbook.taken()
            else:
                found = logbook.place() if step == "leave" else None
                assert step == "pipe" or (found is None) == (len(left) == SEGMENTS - 1)
                if found is not None:
                    left.append((found, b"".join(results[sent:])))
                sent = len(results)
                logbook.sent(sent, left=found is not None)
            page = logbook.read()
            assert (page.done, page.sent) == (len(results), sent)
            assert page.unsent == b"".join(results[sent:])
    finally:
        logbook.close()


def test_a_traceback_that_holds_a_result_does_not_keep_the_logbook_open() -> None:
    logbook = Logbook.create(segments=SEGMENTS)
    logbook.open_batch(1)
    finish(logbook, 1, b"result")
    view = logbook.results(*(logbook.place() or (0, 0)))
    logbook.close()
    assert logbook.fileno() == -1
    assert bytes(view) == b"result"


# Reports of handlers.


@pytest.mark.parametrize("done", [0, 7, (1 << 64) - 1, 0.5])
@pytest.mark.parametrize("total", [None, 9, (1 << 64) - 1, 1e300])
@pytest.mark.parametrize("note", ["", "page", "\u20ac" * 66])
def test_report_is_read_as_it_was_made(
    logbook: Logbook, done: float, total: float | None, note: str
) -> None:
    logbook.open_batch(7)
    logbook.begin(2, 12.5)
    logbook.begin_reports()(done, total, note)

    reported = logbook.reported()
    assert reported is not None
    assert reported[:5] == (7, 2, done, total, note)
    assert type(reported.done) is type(done)
    assert type(reported.total) is type(total)
    assert logbook.read().reported == tuple(reported)


def test_report_of_another_delivery_is_no_progress(logbook: Logbook) -> None:
    assert logbook.reported() is None
    logbook.open_batch(7)
    logbook.begin(2, 12.5)
    logbook.begin_reports()(1, 2, "")

    reported = logbook.reported()
    assert reported is not None
    assert reported.during(7, 2) is not None
    assert reported.during(7, 3) is reported.during(8, 2) is None


def test_thread_may_report_after_the_logbook_was_closed() -> None:
    logbook = Logbook.create()
    report = logbook.begin_reports()
    logbook.close()
    report(1, 2, "late")


def test_reports_are_read_whole_while_the_worker_makes_others(logbook: Logbook) -> None:
    def work() -> None:
        report = logbook.begin_reports()
        for number in range(1, 1 << 40):  # it is killed
            report(number, number, str(number) * (number % 3))

    with child_that_runs(work):
        eventually(lambda: logbook.reported() is not None)
        found = [logbook.reported() for _ in range(30_000)]
    found.append(logbook.reported())
    assert found[-1] is not None, "the worker was killed while it reported"
    seen = [report for report in found if report is not None]
    assert len(seen) > len(found) // 2
    for _, _, done, total, note, _ in seen:
        assert done == total
        assert note == str(done) * (int(done) % 3)
