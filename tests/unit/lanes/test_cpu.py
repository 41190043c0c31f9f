"""The cpu lane: sharing out, taking back, growing, and its ends."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from procbus import current
from procbus.core.delivery import Delivery, DeliveryState
from procbus.core.errors import QueueFull, WorkerDied
from procbus.core.outcome import OutcomeKind
from procbus.lanes.breaker import CircuitLimits
from procbus.lanes.companion import Companion
from procbus.lanes.cpu import FAILED_STARTS
from procbus.lanes.slot import Batch, Slot
from procbus.pool.interface import LastWords, SetUpFailed, WorkerGone
from procbus.pool.loky import LokyPool
from tests.cpu_stage import BOUND_S, Stage, spot, spots, visited
from tests.parts import in_thread
from tests.waits import eventually

SUCCEEDED, CANCELLED, DIED = (
    OutcomeKind.SUCCEEDED,
    OutcomeKind.CANCELLED,
    OutcomeKind.WORKER_DIED,
)
NO_WORDS = LastWords(0, [], None)

MakeStage = Callable[..., Stage]


@pytest.fixture
def make_stage() -> Iterator[MakeStage]:
    stages: list[Stage] = []

    def make(workers: int, **limits: Any) -> Stage:
        stages.append(Stage(workers, **limits))
        return stages[-1]

    yield make
    for stage in stages:
        stage.finish()


def names(count: int) -> list[str]:
    return [f"e{n}" for n in range(count)]


# Sharing out.


def test_single_worker_runs_everything_in_order(make_stage: MakeStage) -> None:
    stage = make_stage(1)

    kinds = stage.settled(*stage.put(*names(500)))

    assert set(kinds) == {SUCCEEDED}
    assert visited == names(500)


@pytest.mark.parametrize("together", [True, False])
def test_deliveries_taken_before_the_lane_grew_move_to_the_new_workers(
    make_stage: MakeStage, together: bool
) -> None:
    stage = make_stage(2)
    lane = stage.lane
    stage.settled(*stage.put("warm"))
    assert len(lane.batching.slots) == 1
    first, second = spot("first"), spot("second")

    # As if the thread that puts them were held up before it comes to the growing of the lane.
    put = partial(stage.put, put=lane.queue.put)
    if together:
        with lane.queue.lock:
            both = put("first", "second")
        first.wait_begun()
        lane.relieve(lane.batching.slots[0])  # as the companion does once a batch is overdue
    else:
        both = put("first")
        first.wait_begun()
        both += put("second")
        lane.look_ahead()  # as the companion of the first does before it takes more
    second.wait_begun()  # while the first is not through

    first.go_on.set()
    second.go_on.set()
    assert stage.settled(*both) == [SUCCEEDED, SUCCEEDED]


def test_a_lane_closes_while_a_companion_is_listed_and_not_started(
    make_stage: MakeStage,
) -> None:
    listed, go_on = threading.Event(), threading.Event()

    class Late(Companion):
        def start(self) -> None:
            listed.set()
            assert go_on.wait(BOUND_S)
            super().start()

    stage = make_stage(1, make_companion=Late)
    put: list[Delivery] = []
    publisher = in_thread(lambda: put.extend(stage.put("e")))
    assert listed.wait(BOUND_S)
    closer = in_thread(stage.lane.close)
    go_on.set()
    publisher.join(BOUND_S)
    closer.join(BOUND_S)
    assert not closer.is_alive()
    assert stage.settled(*put) == [SUCCEEDED]


def test_a_batch_takes_no_more_than_its_share(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    first, second = spot("first"), spot("second")
    blocked = stage.put("first", "second")
    first.wait_begun()
    second.wait_begun()
    stage.pool.batches.clear()
    waiting = stage.put(*names(10))

    first.go_on.set()
    stage.settled(*waiting)
    second.go_on.set()
    stage.settled(*blocked)

    sizes = [len(batch) for batch in stage.pool.batches]
    assert sizes[0] == 5, "two workers, so half of what is ready"
    assert max(sizes) == 5


def test_a_handler_that_never_ran_goes_alone(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    blocker = spot("blocker")
    deliveries = stage.put("blocker")
    blocker.wait_begun()
    unknown = stage.subscribe(len)
    unknown.average_s = None
    stage.pool.batches.clear()

    deliveries += stage.put("a", to=unknown) + stage.put("b", "c")
    blocker.go_on.set()
    stage.settled(*deliveries)

    assert stage.pool.batches[0] == ["a"]


def test_long_handlers_go_one_by_one(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    blocker = spot("blocker")
    deliveries = stage.put("blocker")
    blocker.wait_begun()
    long = stage.subscribe(len)
    long.average_s = 10.0
    stage.pool.batches.clear()

    deliveries += stage.put("a", "b", "c", to=long)
    blocker.go_on.set()
    stage.settled(*deliveries)

    assert stage.pool.batches == [["a"], ["b"], ["c"]]


def test_deliveries_that_do_not_fit_into_a_message_stay_in_order(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    events = [f"{n:05}" * 4000 for n in range(12)]  # 20 KB each

    stage.settled(*stage.put(*events))

    assert visited == events


def test_an_event_that_does_not_travel_fails_alone(make_stage: MakeStage) -> None:
    stage = make_stage(1)

    kinds = stage.settled(*stage.put("a", threading.Lock(), "c"))

    assert kinds == [SUCCEEDED, OutcomeKind.RAISED, SUCCEEDED]


# Taking back.


def test_an_overdue_batch_is_recalled_by_an_idle_worker(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    first, second, slow = spot("first"), spot("second"), spot("slow")
    blocked = stage.put("first", "second")
    first.wait_begun()
    second.wait_begun()
    long, *quick = stage.put("slow", "quick-1", "quick-2")

    first.go_on.set()
    slow.wait_begun()
    assert ["slow", "quick-1"] in stage.pool.batches
    second.go_on.set()

    assert stage.settled(*quick) == [SUCCEEDED] * 2, "they need not wait for the slow one"
    assert long.outcome is None
    slow.go_on.set()
    assert stage.settled(long, *blocked) == [SUCCEEDED] * 3
    assert sorted(visited) == ["first", "quick-1", "quick-2", "second", "slow"]


def test_a_worker_idle_before_a_batch_is_handed_out_recalls_it_too(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    first, second, slow = spot("first"), spot("second"), spot("slow")
    stage.put("first", "second")
    first.wait_begun()
    second.wait_begun()
    long, *quick = stage.put("slow", "quick-1", "quick-2")

    def wait_for_the_idle_other(_: object) -> None:
        if stage.pool.batches[-1] == ["slow", "quick-1"]:
            second.go_on.set()
            eventually(lambda: stage.lane.queue.waiting == 1)

    stage.pool.on_prepare = wait_for_the_idle_other
    first.go_on.set()

    assert stage.settled(*quick) == [SUCCEEDED] * 2
    assert long.outcome is None
    slow.go_on.set()
    assert stage.settled(long) == [SUCCEEDED]


def test_a_recalled_worker_works_again_once_it_has_reported(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    first, second, slow = spot("first"), spot("second"), spot("slow")
    stage.put("first", "second")
    first.wait_begun()
    second.wait_begun()
    long, *quick = stage.put("slow", "quick-1", "quick-2")
    first.go_on.set()
    slow.wait_begun()
    second.go_on.set()
    stage.settled(*quick)
    last = spot("last")
    more = stage.put("last")
    last.wait_begun()  # the other worker is busy again

    slow.go_on.set()
    others = stage.put(*names(20))

    assert stage.settled(long, *others) == [SUCCEEDED] * 21
    last.go_on.set()
    stage.settled(*more)
    assert set(Counter(visited).values()) == {1}


def hand_out(stage: Stage, *events: str) -> tuple[Slot, Batch, list[Delivery]]:
    """Have a batch handed out to a worker that no thread runs."""
    worker = stage.pool.start(lambda _: None)
    slot = Slot(1)
    slot.worker = worker
    slot.recalled = "recalled" in events
    for delivery in stage.put(*events):
        assert delivery.outcome is None
    taken = stage.lane.queue.locked_take_batch(1.0, 100)
    batch = Batch(worker.prepare(1, taken))
    return slot, batch, stage.lane.batching.hand_out(slot, worker, batch)


class Unstarted(Stage):
    """A lane that starts no companion."""

    def __init__(self) -> None:
        super().__init__(0)

    def finish(self) -> None:
        for worker in self.pool.started:
            worker.stop()
        super().finish()


@pytest.fixture
def unstarted() -> Iterator[Unstarted]:
    stage = Unstarted()
    yield stage
    stage.finish()


def test_a_recalled_worker_is_handed_nothing(unstarted: Unstarted) -> None:
    slot, batch, dropped = hand_out(unstarted, "recalled", "a", "b")

    assert dropped == []
    assert batch.deliveries == []
    assert not slot.in_flight
    assert slot.worker is not None
    assert slot.worker.take_back(10) == 0, "no token may be there for what is not handed out"
    back = unstarted.lane.queue.locked_take_batch(1.0, 100)
    assert [d.receipt.event for d in back if d.receipt] == ["recalled", "a", "b"]


def test_tokens_are_there_as_soon_as_a_batch_is_in_flight(unstarted: Unstarted) -> None:
    slot, batch, dropped = hand_out(unstarted, "a", "b", "c")

    assert dropped == []
    assert list(slot.in_flight) == [batch]
    assert slot.due_at < time.monotonic() + 60
    assert slot.worker is not None
    assert slot.worker.take_back(10) == 3


def spin(event: tuple[int, float]) -> int:
    """Compute for the seconds of the event."""
    number, seconds = event
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return number


def test_batches_that_turn_out_long_lose_and_repeat_nothing() -> None:
    stage = Stage(0)
    lane = stage.lane = stage.lane_on(LokyPool(1))
    subscription = stage.subscribe(spin)
    try:
        events = [(n, 0.040 if n % 100 == 50 else 0.0) for n in range(500)]
        deliveries = stage.put(*events, to=subscription)

        assert set(stage.settled(*deliveries)) == {SUCCEEDED}
        assert [delivery.result() for delivery in deliveries] == list(range(500))
        assert lane.stats().restarts == 0
    finally:
        lane.close()


# Growing.


def test_no_worker_is_started_before_there_is_work(make_stage: MakeStage) -> None:
    stage = make_stage(2)

    assert stage.pool.started == []
    assert not stage.lane.launched


def test_an_idle_worker_is_used_again(make_stage: MakeStage) -> None:
    stage = make_stage(4)
    for name in names(10):
        stage.settled(*stage.put(name))
        eventually(lambda: stage.lane.queue.waiting == 1)

    assert len(stage.pool.started) == 1


def test_workers_are_added_while_all_are_busy_up_to_the_size_of_the_pool(
    make_stage: MakeStage,
) -> None:
    stage = make_stage(3)
    for name in names(3):
        spot(name)
    for name in names(3):
        stage.put(name)
        spots[name].wait_begun()
    last = stage.put("last")

    assert len(stage.pool.started) == 3
    assert last[0].outcome is None
    assert stage.lane.stats().workers == 3
    assert stage.lane.stats().busy == 3


def test_start_starts_all_workers(make_stage: MakeStage) -> None:
    stage = make_stage(3)

    stage.lane.start()
    stage.lane.start()

    assert stage.lane.launched
    eventually(lambda: len(stage.pool.started) == 3)
    assert stage.lane.stats().workers == 3


def test_launch_starts_one_worker(make_stage: MakeStage) -> None:
    stage = make_stage(3)

    stage.lane.launch()
    stage.lane.launch()

    assert stage.lane.launched
    assert len(stage.pool.started) == 1


# The running deliveries.


def test_lane_knows_the_running_deliveries(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    slow = spot("slow")
    running, waiting = stage.put("slow", "next")
    slow.wait_begun()

    assert running.state is DeliveryState.RUNNING
    assert waiting.state is DeliveryState.PENDING
    [(_, delivery, since, _)] = stage.lane.batching.at_hand()
    assert delivery is running
    assert 0 < since <= time.monotonic()
    slow.go_on.set()
    assert stage.settled(running, waiting) == [SUCCEEDED] * 2


# Published events.


def publish_and_return(event: str) -> str:
    current().publish("child", event)
    return event


def test_published_events_are_out_before_the_delivery_is_settled(make_stage: MakeStage) -> None:
    stage = make_stage(1)

    [delivery] = stage.put("a", to=stage.subscribe(publish_and_return))

    assert stage.settled(delivery) == [SUCCEEDED]
    assert stage.children == [("child", "a")]


def test_events_that_cannot_be_published_fail_their_delivery(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.children_error = QueueFull("no room")

    failed, fine = stage.put("a", to=stage.subscribe(publish_and_return)) + stage.put("b")

    assert stage.settled(failed, fine) == [OutcomeKind.RAISED, SUCCEEDED]
    assert failed.outcome is not None
    assert failed.outcome.error is stage.children_error
    assert failed.outcome.dropped_events == 1


# Workers that cannot be started.


def refuse(hopeless: bool = False) -> None:
    raise WorkerGone(None, 3, NO_WORDS, hopeless=hopeless)


def test_waiting_deliveries_fail_if_no_worker_starts(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    attempts: list[int] = []

    def start() -> None:
        attempts.append(1)
        refuse()

    stage.pool.on_start = start

    [delivery] = stage.put("a")

    assert stage.settled(delivery) == [DIED]
    assert isinstance(delivery.exception(), WorkerDied)
    assert "exit code 3" in str(delivery.exception())
    assert len(attempts) == FAILED_STARTS
    assert visited == []


def test_failed_starts_fail_no_delivery_if_one_succeeds_in_the_end(
    make_stage: MakeStage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = make_stage(1)
    attempts: list[int] = []

    def start() -> None:
        attempts.append(1)
        if len(attempts) < FAILED_STARTS:
            refuse()

    stage.pool.on_start = start
    deliveries = stage.put("a", "b")

    assert stage.settled(*deliveries) == [SUCCEEDED, SUCCEEDED]
    assert [delivery.attempts for delivery in deliveries] == [1, 1]
    assert len(attempts) == FAILED_STARTS
    assert caplog.text.count("while it started") == FAILED_STARTS - 1


def test_failed_starts_count_as_deaths_for_the_circuit(
    make_stage: MakeStage,
) -> None:
    stage = make_stage(1, circuit=CircuitLimits(most_deaths=2))
    attempts: list[int] = []

    def start() -> None:
        attempts.append(1)
        if len(attempts) <= 3:
            refuse()

    stage.pool.on_start = start
    [delivery] = stage.put("a")
    eventually(lambda: bool(stage.guarded))

    assert "while it started" in str(stage.guarded[0])
    assert delivery.outcome is None, "it waits for a trial"
    stage.lane.cancel()


def test_hopeless_starts_are_not_repeated(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    attempts: list[int] = []

    def start() -> None:
        attempts.append(1)
        refuse(hopeless=True)

    stage.pool.on_start = start

    assert stage.settled(*stage.put("a")) == [DIED]
    assert len(attempts) == 1


def fail_to_set_up() -> None:
    raise SetUpFailed(None) from ValueError("no model")


def test_lane_without_a_worker_tries_again_for_the_next_delivery(
    make_stage: MakeStage,
) -> None:
    stage = make_stage(1)
    stage.pool.on_start = refuse
    assert stage.settled(*stage.put("a")) == [DIED]
    eventually(lambda: not stage.lane.launched)

    stage.pool.on_start = lambda: None

    assert stage.settled(*stage.put("b")) == [SUCCEEDED]


def test_deliveries_soon_after_a_failed_set_up_fail_at_once(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    attempts: list[int] = []

    def start() -> None:
        attempts.append(1)
        fail_to_set_up()

    stage.pool.on_start = start
    [first] = stage.put("a")
    assert stage.settled(first) == [DIED]
    eventually(lambda: not stage.lane.launched)

    [second] = stage.put("b")

    assert stage.settled(second) == [DIED]
    assert second.exception() is first.exception()
    assert "no model" in str(first.exception())
    assert len(attempts) == 1
    assert visited == []


def test_after_a_set_up_that_failed_another_is_tried_in_the_end(
    make_stage: MakeStage,
) -> None:
    stage = make_stage(1, broken_s=0.0)
    stage.pool.on_start = fail_to_set_up
    assert stage.settled(*stage.put("a")) == [DIED]
    eventually(lambda: not stage.lane.launched)

    stage.pool.on_start = lambda: None

    assert stage.settled(*stage.put("b")) == [SUCCEEDED]


def test_a_fault_of_procbus_itself_at_a_start_loses_nothing(
    make_stage: MakeStage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = make_stage(1)

    def fail() -> None:
        raise RuntimeError("a bug in procbus")

    stage.pool.on_start = fail

    [delivery] = stage.put("a")

    assert stage.settled(delivery) == [DIED]
    assert "a bug in procbus" in str(delivery.exception())
    assert "procbus itself failed" in caplog.text
    eventually(lambda: not stage.lane.launched)
    stage.pool.on_start = lambda: None
    assert stage.settled(*stage.put("b")) == [SUCCEEDED]


def test_waiting_deliveries_stay_while_another_worker_can_run_them(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    busy = spot("busy")
    deliveries = stage.put("busy")
    busy.wait_begun()
    stage.pool.on_start = refuse
    deliveries += stage.put("waiting")
    eventually(lambda: stage.lane.stats().workers == 1)

    assert deliveries[1].outcome is None
    busy.go_on.set()

    assert stage.settled(*deliveries) == [SUCCEEDED] * 2


# Ends.


def test_close_finishes_queued_deliveries_and_then_ends_the_workers(make_stage: MakeStage) -> None:
    stage = make_stage(2)
    deliveries = stage.put(*names(50))

    stage.lane.close()
    stage.lane.close()

    assert {d.state for d in deliveries} == {DeliveryState.SUCCEEDED}
    assert not stage.lane.launched
    assert sorted(map(id, stage.pool.stopped)) == sorted(map(id, stage.pool.started))


def test_close_finishes_though_a_worker_dies_meanwhile(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    slow = spot("slow")
    running, *waiting = stage.put("slow", "a", "b")
    slow.wait_begun()
    closing = threading.Thread(target=stage.lane.close)
    closing.start()
    eventually(lambda: stage.lane.queue.closed)

    stage.pool.started[0].kill()
    slow.go_on.set()
    closing.join(55)

    assert not closing.is_alive()
    assert stage.settled(running, *waiting) == [DIED, SUCCEEDED, SUCCEEDED]


def test_cancel_settles_deliveries_that_have_not_begun(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    slow = spot("slow")
    running, *waiting = stage.put("slow", *names(20))
    slow.wait_begun()

    stage.lane.cancel()
    stage.lane.cancel()

    assert set(stage.settled(*waiting)) == {CANCELLED}
    slow.go_on.set()
    assert stage.settled(running) == [SUCCEEDED]
    assert visited == ["slow"]


def test_delivery_put_after_cancel_is_cancelled_at_once(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.lane.cancel()

    [delivery] = stage.put("late")

    assert delivery.state is DeliveryState.CANCELLED
    assert stage.pool.started == []


def test_deliveries_about_to_be_handed_out_are_cancelled_too(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    stage.pool.on_prepare = lambda _: stage.lane.cancel()

    deliveries = stage.put("a", "b", "c")

    assert set(stage.settled(*deliveries)) == {CANCELLED}
    assert visited == []


def test_kill_after_cancel_ends_running_deliveries_as_cancelled(make_stage: MakeStage) -> None:
    stage = make_stage(1)
    slow = spot("slow")
    running, waiting = stage.put("slow", "next")
    slow.wait_begun()

    stage.lane.cancel()
    stage.lane.kill()
    stage.lane.kill()
    slow.go_on.set()

    assert stage.settled(running, waiting) == [CANCELLED] * 2
    assert running.run_s is not None
    eventually(lambda: not stage.lane.launched)
    assert len(stage.pool.started) == 1, "a worker that was killed is not replaced"


def test_a_worker_that_is_being_started_while_all_are_killed_runs_nothing(
    make_stage: MakeStage,
) -> None:
    stage = make_stage(1)
    starting, go_on = threading.Event(), threading.Event()

    def start() -> None:
        starting.set()
        assert go_on.wait(55)

    stage.pool.on_start = start
    publisher = threading.Thread(target=lambda: stage.put("a"))
    publisher.start()
    assert starting.wait(55)

    stage.lane.cancel()
    stage.lane.kill()
    go_on.set()
    publisher.join(55)
    stage.lane.close()

    assert not publisher.is_alive()
    assert visited == []
    assert len(stage.pool.stopped) == len(stage.pool.started) == 1
