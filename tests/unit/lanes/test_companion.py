"""The companion: the end of every delivery whose worker dies, or for which procbus itself fails."""

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from procbus.core.delivery import Delivery, cancelled
from procbus.core.errors import CircuitOpen, ProcbusError, WorkerDied
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.lanes.breaker import CircuitLimits
from procbus.lanes.companion import BARREN_DEATHS
from procbus.lanes.recycling import RecyclingPolicy
from tests.cpu_stage import SpyWorker, Stage, spot, visited
from tests.waits import eventually

SUCCEEDED, RAISED, DIED = OutcomeKind.SUCCEEDED, OutcomeKind.RAISED, OutcomeKind.WORKER_DIED
#: The third death in a row opens the circuit.
LIMITS = CircuitLimits(most_deaths=2)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(1)
    yield stage
    stage.finish()


def test_a_second_batch_waits_at_the_worker_while_the_first_runs(stage: Stage) -> None:
    first = spot("first")
    sent: list[int] = []
    stage.pool.on_send = lambda _: sent.append(1)
    deliveries = stage.put("first")
    first.wait_begun()
    first.go_on.set()
    deliveries += stage.put(*(f"e{n}" for n in range(100)))

    assert set(stage.settled(*deliveries)) == {SUCCEEDED}
    assert len(sent) == len(stage.pool.batches)


def test_a_batch_that_does_not_fit_ahead_is_sent_in_its_turn(stage: Stage) -> None:
    stage.pool.fits_ahead = False

    deliveries = stage.put(*(f"e{n}" for n in range(300)))

    assert set(stage.settled(*deliveries)) == {SUCCEEDED}
    assert visited == [f"e{n}" for n in range(300)]


def die_in(stage: Stage, name: str, *others: str) -> tuple[Delivery, list[Delivery]]:
    """Have the worker die in the handler of one event, with others behind it."""
    blocker, deadly = spot("blocker"), spot(name)
    stage.put("blocker")
    blocker.wait_begun()
    victim, *rest = stage.put(name, *others)
    blocker.go_on.set()
    deadly.wait_begun()
    stage.pool.started[-1].kill()
    deadly.go_on.set()
    return victim, rest


def test_the_delivery_that_a_worker_dies_with_is_charged(stage: Stage) -> None:
    victim, others = die_in(stage, "deadly", "a", "b", "c")

    assert stage.settled(victim, *others) == [DIED, SUCCEEDED, SUCCEEDED, SUCCEEDED]
    error = victim.exception()
    assert isinstance(error, WorkerDied)
    assert error.handler == stage.visits.handler.name
    assert error.event_id == victim.event_id
    assert victim.attempts == 1
    assert stage.lane.stats().restarts == 1


def test_deliveries_that_a_dead_worker_had_not_begun_run_once_in_order(stage: Stage) -> None:
    _, others = die_in(stage, "deadly", "a", "b", "c", "d")
    later = stage.put("later")

    stage.settled(*others, *later)

    assert visited == ["blocker", "deadly", "a", "b", "c", "d", "later"]


def test_deliveries_that_a_dead_worker_had_finished_keep_their_results(stage: Stage) -> None:
    blocker, deadly = spot("blocker"), spot("deadly")
    stage.put("blocker")
    blocker.wait_begun()
    done, victim, other = stage.put("done", "deadly", "other")
    blocker.go_on.set()
    deadly.wait_begun()
    assert ["done", "deadly", "other"] in stage.pool.batches
    stage.pool.started[-1].kill()
    deadly.go_on.set()

    assert stage.settled(done, victim, other) == [SUCCEEDED, DIED, SUCCEEDED]
    assert done.result() == "done"
    assert set(Counter(visited).values()) == {1}


def test_a_worker_that_dies_idle_is_replaced_for_the_next_event(stage: Stage) -> None:
    stage.settled(*stage.put("a"))
    eventually(lambda: stage.lane.queue.waiting == 1)

    stage.pool.started[0].kill()

    assert stage.settled(*stage.put("b")) == [SUCCEEDED]
    assert visited == ["a", "b"]
    assert stage.lane.stats().restarts == 1


def test_a_delivery_that_kills_workers_before_it_begins_is_charged_in_the_end(
    stage: Stage,
) -> None:
    def die_of_deadly(worker: SpyWorker) -> None:
        if "deadly" in stage.pool.batches[-1]:
            worker.kill()

    stage.pool.on_receive = die_of_deadly

    deliveries = stage.put("deadly", "a", "b")

    assert stage.settled(*deliveries) == [DIED, SUCCEEDED, SUCCEEDED]
    assert len(stage.pool.started) == BARREN_DEATHS + 1
    assert visited == ["a", "b"]


def test_deaths_that_are_not_in_a_row_are_charged_to_no_delivery(stage: Stage) -> None:
    deaths: list[str] = []

    def die_twice_for_each(worker: SpyWorker) -> None:
        event = stage.pool.batches[-1][0]
        if deaths.count(event) < BARREN_DEATHS - 1:
            deaths.append(event)
            worker.kill()

    stage.pool.on_receive = die_twice_for_each

    for name in ("a", "b", "c"):
        assert stage.settled(*stage.put(name)) == [SUCCEEDED]
    assert visited == ["a", "b", "c"]


@pytest.mark.parametrize("where", ["on_prepare", "on_send", "on_receive"])
def test_fault_of_procbus_fails_only_the_deliveries_it_touched(
    stage: Stage, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: SpyWorker) -> None:
        if "touched" in stage.pool.batches[-1]:
            raise RuntimeError("a bug in procbus")

    setattr(stage.pool, where, fail)

    [touched] = stage.put("touched")

    assert stage.settled(touched) == [RAISED]
    assert isinstance(touched.exception(), ProcbusError)
    assert "a bug in procbus" in str(touched.exception())
    assert stage.settled(*stage.put("next")) == [SUCCEEDED]
    assert "procbus itself failed" in caplog.text
    # A message that was never sent has done no harm to the worker.
    assert len(stage.pool.started) == (1 if where == "on_prepare" else 2)


def test_a_fault_in_one_of_a_batch_fails_that_one(stage: Stage) -> None:
    def fail(_: SpyWorker) -> None:
        if "poison" in stage.pool.batches[-1]:
            raise SystemExit("a bug in procbus")

    stage.pool.on_prepare = fail
    blocker = spot("blocker")
    stage.put("blocker")
    blocker.wait_begun()
    deliveries = stage.put("a", "b", "poison", "c", "d")
    blocker.go_on.set()

    assert stage.settled(*deliveries) == [SUCCEEDED, SUCCEEDED, RAISED, SUCCEEDED, SUCCEEDED]
    assert visited == ["blocker", "a", "b", "c", "d"]
    assert len(stage.pool.started) == 1


def test_all_ended_deliveries_are_settled_even_if_settling_fails_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = stage.settlement.settle_successes

    def fail_once(*args: Any) -> None:
        stage.lane.settle_successes = settle
        raise SystemExit("a bug in procbus")

    stage.lane.settle_successes = fail_once
    deliveries = stage.put(*(f"e{n}" for n in range(5)))

    kinds = stage.settled(*deliveries)
    assert set(kinds) <= {SUCCEEDED, RAISED}
    assert RAISED in kinds
    assert stage.settled(*stage.put("next")) == [SUCCEEDED]


class Heavy:
    """An event or result that a test can see the end of."""


def test_last_batch_is_not_kept_alive(stage: Stage) -> None:
    handle = stage.subscribe(lambda event: Heavy())
    [delivery] = stage.put(Heavy(), to=handle)
    stage.settled(delivery)
    assert stage.admission.wait_empty(55)
    ends = [weakref.ref(delivery.value), weakref.ref(stage.receipt_of(delivery).event)]
    stage.forget(delivery)
    stage.pool.batches.clear()
    del delivery

    eventually(lambda: [end() for end in ends] == [None, None])


def test_a_companion_tells_its_last_exit(stage: Stage) -> None:
    victim, _ = die_in(stage, "deadly")
    stage.settled(victim)

    [(slot, *_)] = stage.lane.batching.at_hand()

    assert slot.restarts == 1
    assert "ended with exit code" in slot.last_exit
    eventually(lambda: slot.events_done == 1)


def test_a_message_without_deliveries_is_not_sent(stage: Stage) -> None:
    sent: list[int] = []
    stage.pool.on_send = lambda _: sent.append(1)

    assert stage.settled(*stage.put(*((n for n in range(2)) for _ in range(2)))) == [RAISED] * 2
    assert sent == []


# Worn out.


@pytest.fixture
def make_stage() -> Iterator[Callable[[RecyclingPolicy], Stage]]:
    stages: list[Stage] = []

    def make(recycling: RecyclingPolicy) -> Stage:
        stages.append(Stage(1, recycling))
        return stages[-1]

    yield make
    for stage in stages:
        stage.finish()


def test_a_worker_is_replaced_after_its_number_of_events(
    make_stage: Callable[[RecyclingPolicy], Stage],
) -> None:
    stage = make_stage(RecyclingPolicy(max_events=3))
    events = [f"e{n}" for n in range(10)]

    assert set(stage.settled(*stage.put(*events))) == {SUCCEEDED}

    assert visited == events
    assert all(len(batch) <= 3 for batch in stage.pool.batches)
    assert len(stage.pool.started) == 4
    [(slot, *_)] = stage.lane.batching.at_hand()
    assert slot.last_exit == "replaced after 3 events (max_events_per_worker)"
    assert stage.lane.stats().restarts == 3
    assert len(stage.pool.stopped) == 3, "each came to its end in peace"
    assert stage.lane.breaker.reason() == ""


def test_a_worker_that_grew_is_replaced_before_the_next_batch(
    make_stage: Callable[[RecyclingPolicy], Stage],
) -> None:
    class Grown:
        def rss(self) -> int:
            return 2 << 20

    stage = make_stage(RecyclingPolicy(max_memory=1 << 20))
    stage.pool.make_probe = Grown

    for name in ("a", "b", "c"):
        assert stage.settled(*stage.put(name)) == [SUCCEEDED]

    assert visited == ["a", "b", "c"]
    eventually(lambda: len(stage.pool.stopped) == 3)


def test_a_worker_that_cannot_be_replaced_does_more_than_its_number_of_events(
    make_stage: Callable[[RecyclingPolicy], Stage],
) -> None:
    stage = make_stage(RecyclingPolicy(max_events=3, may_replace=lambda: False))

    assert set(stage.settled(*stage.put(*(f"e{n}" for n in range(10))))) == {SUCCEEDED}

    assert len(stage.pool.started) == 1


def test_worker_worn_out_while_the_lane_closes_is_replaced_for_the_rest(
    make_stage: Callable[[RecyclingPolicy], Stage],
) -> None:
    stage = make_stage(RecyclingPolicy(max_events=1))
    slow = spot("slow")
    deliveries = stage.put("slow", "a", "b")
    slow.wait_begun()
    closing = threading.Thread(target=stage.lane.close)
    closing.start()
    eventually(lambda: stage.lane.queue.closed)
    slow.go_on.set()
    closing.join(55)

    assert not closing.is_alive()
    assert stage.settled(*deliveries) == [SUCCEEDED] * 3
    assert len(stage.pool.started) == 3


# Workers that die and die.


def die_before_anything(stage: Stage) -> None:
    """Have every worker die as soon as it is given something."""
    stage.pool.on_receive = lambda worker: worker.kill()


@pytest.fixture
def brittle() -> Iterator[Stage]:
    """A lane whose circuit opens with the third death."""
    stage = Stage(1, circuit=LIMITS)
    yield stage
    stage.finish()


def test_workers_that_die_and_die_stop_the_lane(
    brittle: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = brittle
    die_before_anything(stage)
    deliveries = stage.put(*(f"e{n}" for n in range(10)))
    eventually(lambda: bool(stage.guarded))

    [error] = stage.guarded
    assert isinstance(error, CircuitOpen)
    assert "3 worker processes died" in str(error)
    assert visited == []
    assert stage.lane.stats().paused

    stage.pool.on_receive = lambda _: None
    stage.lane.breaker.look(time.monotonic() + LIMITS.cool_s, "")

    # One is charged for every third death: here just after the circuit opened.
    outcomes = list(stage.settled(*deliveries))
    assert 1 <= outcomes.count(DIED) <= 3 // BARREN_DEATHS
    assert outcomes.count(SUCCEEDED) == 10 - outcomes.count(DIED)
    assert stage.guarded[-1] is None
    assert "works again" in caplog.text
    assert stage.lane.stats().paused == ""


@pytest.mark.parametrize("how", ["cannot travel", "was settled"])
def test_a_trial_that_never_got_to_a_worker_is_followed_by_another(
    brittle: Stage, how: str
) -> None:
    stage = brittle
    die_before_anything(stage)
    first = stage.put("a", "b")
    eventually(lambda: bool(stage.guarded))
    with stage.lane.queue.lock:
        assert stage.lane.batching.circuit.most() == 0

    def room_is_made() -> bool:  # the companion may still have to put back what its worker had
        stage.lane.fail_ready(Outcome(DIED, error=WorkerDied("made room")))
        return all(delivery.outcome is not None for delivery in first)

    eventually(room_is_made)
    stage.pool.on_receive = lambda _: None
    [spent] = stage.put(threading.Lock() if how == "cannot travel" else "gone")
    if how == "was settled":
        stage.settlement.settle([(spent, cancelled(spent))])
    [delivery] = stage.put("next")
    now = time.monotonic() + LIMITS.cool_s
    stage.lane.breaker.look(now, "")
    stage.settled(spent)
    eventually(lambda: stage.lane.queue.depth() == 1 and stage.lane.queue.waiting == 1)
    assert delivery.outcome is None

    stage.lane.breaker.look(now + LIMITS.spent_s, "")

    assert stage.settled(delivery) == [SUCCEEDED]
