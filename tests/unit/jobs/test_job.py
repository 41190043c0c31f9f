"""Jobs: bad input, cancelling, bounds, and the counts of random trees of events."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import (
    BusClosed,
    Cancelled,
    EventBus,
    Job,
    JobDone,
    OptionError,
    ProcbusError,
    Receipt,
    Settled,
    current,
)
from procbus.core.listeners import Listeners
from procbus.testing import InlineBus
from tests.parts import BOUND_S


def listeners_of(bus: EventBus) -> Listeners:
    return bus._parts.settlement.listeners  # noqa: SLF001 - nothing public shows them


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name of a job"),
        ({"name": 7}, "name of a job"),
        ({"name": "a", "max_failed": -1}, "max_failed must be"),
        ({"name": "a", "max_failed": 1.5}, "max_failed must be"),
        ({"name": "a", "keep_results": None}, "keep_results must be"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        InlineBus([]).job(**options)


def test_job_has_one_block() -> None:
    job = InlineBus([]).job("once")
    with pytest.raises(ProcbusError, match="has no block yet"):
        job.wait()
    with job:
        pass
    with pytest.raises(ProcbusError, match="has had its block"), job:
        pass


def test_closed_bus_has_no_jobs() -> None:
    bus = EventBus([])
    bus.close()
    with pytest.raises(BusClosed):
        bus.job("late")


def test_inner_job_adds_the_deliveries_of_its_end_to_the_outer_job() -> None:
    gone, go_on = threading.Event(), threading.Event()

    def collect(done: JobDone) -> None:
        if done.name == "inner":
            gone.set()
            go_on.wait(BOUND_S)

    with EventBus([]) as bus:
        bus.subscribe(JobDone, collect)
        bus.subscribe("number", abs)
        with bus.job("outer") as outer:
            with bus.job("inner") as inner:
                bus.publish("number", 1)
            assert gone.wait(BOUND_S)
            assert inner.done
            assert not outer.wait(0.01)  # the handler of the inner JobDone still runs
            assert (inner.succeeded, outer.succeeded, outer.pending) == (1, 1, 1)
            go_on.set()
        assert (inner.succeeded, outer.succeeded, outer.pending) == (1, 2, 0)
        bus.drain()
        assert outer.succeeded == 2  # its own JobDone does not count


def test_empty_job_is_done_at_once() -> None:
    done: list[JobDone] = []
    bus = InlineBus([])
    bus.subscribe(JobDone, done.append)
    with bus.job("nothing") as job:
        pass
    assert done == [JobDone("nothing", job.id, 0, 0, 0)]
    assert repr(job) == "<Job 'nothing': nothing published>"


def test_job_done_without_a_handler_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    bus = InlineBus([])
    with bus.job("nothing"):
        pass
    assert not caplog.records
    assert bus.stats().unrouted == 0


def test_bus_without_an_open_job_has_no_listener() -> None:
    bus = InlineBus([])
    bus.subscribe("number", abs)
    listeners = listeners_of(bus)
    for _ in range(2):
        with bus.job("number"):
            bus.publish("number", 1)
            assert listeners.publishing
        assert not listeners.publishing
        assert not listeners.settled


def test_exception_in_the_block_cancels_deliveries_that_have_not_begun() -> None:
    began, go_on = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        began.set()
        go_on.wait(BOUND_S)

    with EventBus([], io_workers=1) as bus:
        bus.subscribe("number", wait)
        job = bus.job("wait")

        def fail_in_block() -> None:
            with job:
                for number in range(5):
                    bus.publish("number", number)
                assert began.wait(BOUND_S)
                threading.Timer(0.01, go_on.set).start()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_in_block()
    assert (job.succeeded, job.cancelled) == (1, 4)


def test_cancelled_job_cancels_later_events_too() -> None:
    began, go_on = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        began.set()
        go_on.wait(BOUND_S)
        current().publish("child", number)

    with EventBus([], io_workers=1) as bus:
        bus.subscribe("number", wait, grace=BOUND_S)
        bus.subscribe("child", abs, key=abs)
        with bus.job("wait") as job:
            bus.publish("number", 1)
            bus.publish("number", 2)
            assert began.wait(BOUND_S)
            assert job.cancel() == 2
            go_on.set()
    assert job.cancelled + job.succeeded == 3  # the running handler may win
    assert job.cancelled >= 1


@pytest.mark.parametrize("kind", ["io", "async", "cpu"])
def test_no_event_of_a_cancelled_job_runs(kind: str) -> None:
    ran: list[int] = []

    async def take_async(number: int) -> None:
        ran.append(number)

    handler: Any = {"io": ran.append, "async": take_async, "cpu": abs}[kind]
    with EventBus([], io_workers=1, cpu_workers=1) as bus:
        bus.subscribe("number", handler, kind="cpu" if kind == "cpu" else "io")
        with bus.job("cancelled") as job:
            job.cancel()
            for number in range(20):
                bus.publish("number", number)
            bus.publish("number", 20, delay=0.01)
            for receipt in bus.stream(range(10), topic="number"):
                assert isinstance(receipt.deliveries[0].exception(), Cancelled)
        assert (job.succeeded, job.cancelled, job.pending) == (0, 31, 0)
        assert bus.drain(BOUND_S)
    assert ran == []


def test_results_beyond_the_limit_are_told() -> None:
    bus = InlineBus([])
    bus.subscribe("number", abs)
    with bus.job("many", keep_results=3) as job:
        for number in range(5):
            bus.publish("number", number)
    results = job.results(abs)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ProcbusError, match="kept the first 3 results"):
        next(results)


def test_broken_where_counts_as_failed() -> None:
    bus = InlineBus([])
    bus.subscribe("number", abs, where=lambda number: 1 / number)
    with bus.job("where") as job:
        bus.publish("number", 0)
        bus.publish("number", 1)
    assert (job.succeeded, job.failed, job.pending) == (1, 1, 0)


def test_tree_says_how_many_events_it_does_not_show() -> None:
    bus = InlineBus([])
    bus.subscribe("number", abs)
    bus.subscribe("number", repr)
    with bus.job("many") as job:
        for number in range(1_005):
            bus.publish("number", number)
    lines = job.tree().splitlines()
    assert lines[-1] == "... and 5 more events"
    assert len(lines) == 1 + 3 * 1_000 + 1


#: A tree of events: whether its handler fails, and its children.
TREES: st.SearchStrategy[Any] = st.recursive(
    st.tuples(st.booleans(), st.just([])),
    lambda trees: st.tuples(st.booleans(), st.lists(trees, max_size=3)),
    max_leaves=12,
)


def ends_of(tree: Any) -> tuple[int, int]:
    """Number of handlers that succeed and that fail; a failed one published its events before."""
    fails, children = tree
    ends = [ends_of(child) for child in children]
    return sum(e[0] for e in ends) + (not fails), sum(e[1] for e in ends) + fails


def grow(tree: Any) -> None:
    fails, children = tree
    for child in children:
        current().publish("tree", child)
    if fails:
        raise ValueError


def check_counts(bus: EventBus, trees: list[Any]) -> None:
    done: list[JobDone] = []
    with bus:
        bus.subscribe("tree", grow)
        bus.subscribe(JobDone, done.append)
        with bus.job("grow") as job:
            for tree in trees:
                bus.publish("tree", tree)
    ends = [ends_of(tree) for tree in trees]
    assert (job.succeeded, job.failed) == (sum(e[0] for e in ends), sum(e[1] for e in ends))
    assert done == [JobDone("grow", job.id, job.succeeded, job.failed, 0)]
    assert not listeners_of(bus).settled


@given(st.lists(TREES, max_size=4))
def test_random_trees_are_counted_inline(trees: list[Any]) -> None:
    check_counts(InlineBus([]), trees)


@pytest.mark.slow
@given(st.lists(TREES, max_size=4))
def test_random_trees_are_counted_on_threads(trees: list[Any]) -> None:
    check_counts(EventBus([], io_workers=4), trees)


#: A step of a script: it publishes a tree, cancels an earlier event or its job, waits for the job,
#: or has an inner job with steps of its own.
STEPS: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.tuples(st.just("publish"), TREES),
        st.tuples(st.just("cancel event"), st.integers(0, 20)),
        st.tuples(st.just("cancel job"), st.none()),
        st.tuples(st.just("wait"), st.none()),
    ),
    lambda steps: st.tuples(st.just("job"), st.lists(steps, max_size=5)),
    max_leaves=12,
)


class Script:
    """Runs steps, and counts the ends of all deliveries by itself."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.done: list[JobDone] = []
        self.jobs: list[Job] = []
        self.receipts: list[Receipt[Any, Any]] = []
        self.ends: Counter[str] = Counter()
        self._lock = threading.Lock()
        bus.subscribe("tree", grow)
        bus.subscribe(JobDone, self.done.append)
        bus.listen(self)

    def settled(self, moment: Settled) -> None:
        event = moment.receipt.event
        if not isinstance(event, JobDone) or event.name != "outer":
            with self._lock:
                self.ends[moment.delivery.state.value] += 1

    def run(self, name: str, steps: list[Any]) -> None:
        with self.bus.job(name) as job:
            self.jobs.append(job)
            for what, about in steps:
                if what == "publish":
                    self.receipts.append(self.bus.publish("tree", about))
                elif what == "cancel event" and self.receipts:
                    self.receipts[about % len(self.receipts)].cancel()
                elif what == "cancel job":
                    job.cancel()
                elif what == "wait":
                    assert job.wait(BOUND_S)
                elif what == "job":
                    self.run("inner", about)


def check_script(bus: EventBus, steps: list[Any]) -> None:
    with bus:
        script = Script(bus)
        script.run("outer", steps)
        outer = script.jobs[0]
        bus.drain()
    ends = outer.succeeded, outer.failed, outer.cancelled
    assert ends == tuple(script.ends[state] for state in ("succeeded", "failed", "cancelled"))
    for job in script.jobs:
        assert job.done
        assert job.pending == 0
    told = {done.id: done for done in script.done}
    assert len(told) == len(script.done)
    for job in script.jobs:
        # A job that is cancelled cancels the JobDone of its inner jobs too.
        done = told.get(job.id)
        if done is not None or job is outer:
            assert done == JobDone(job.name, job.id, job.succeeded, job.failed, job.cancelled)


@given(st.lists(STEPS, max_size=6))
def test_nested_jobs_and_cancels_are_counted_inline(steps: list[Any]) -> None:
    check_script(InlineBus([]), steps)


@pytest.mark.slow
@given(st.lists(STEPS, max_size=6))
def test_nested_jobs_and_cancels_are_counted_on_threads(steps: list[Any]) -> None:
    check_script(EventBus([], io_workers=4), steps)
