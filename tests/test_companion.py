"""The companion: what becomes of every delivery when its worker dies, or procbus itself fails."""

from collections import Counter
from collections.abc import Iterator

import pytest

from procbus.companion import BARREN_DEATHS
from procbus.delivery import Delivery
from procbus.errors import ProcbusError, WorkerDied
from procbus.outcome import OutcomeKind
from tests.cpu_stage import SpyWorker, Stage, eventually, spot, visited

SUCCEEDED, RAISED, DIED = OutcomeKind.SUCCEEDED, OutcomeKind.RAISED, OutcomeKind.WORKER_DIED


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


def test_what_a_dead_worker_had_not_begun_runs_once_and_in_its_order(stage: Stage) -> None:
    _, others = die_in(stage, "deadly", "a", "b", "c", "d")
    later = stage.put("later")

    stage.settled(*others, *later)

    assert visited == ["blocker", "deadly", "a", "b", "c", "d", "later"]


def test_what_a_dead_worker_had_finished_keeps_its_result(stage: Stage) -> None:
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


def test_deaths_that_are_not_in_a_row_are_nobodys_fault(stage: Stage) -> None:
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
def test_a_fault_of_procbus_itself_fails_what_it_touched_and_nothing_else(
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
    assert len(stage.pool.started) == 2


def test_a_companion_tells_its_last_exit(stage: Stage) -> None:
    victim, _ = die_in(stage, "deadly")
    stage.settled(victim)

    [(companion, _, _)] = stage.lane.sharing.at_hand()

    assert companion.restarts == 1
    assert "ended with exit code" in companion.last_exit
    eventually(lambda: companion.events_done == 1)


def test_a_message_without_deliveries_is_not_sent(stage: Stage) -> None:
    sent: list[int] = []
    stage.pool.on_send = lambda _: sent.append(1)

    assert stage.settled(*stage.put(*((n for n in range(2)) for _ in range(2)))) == [RAISED] * 2
    assert sent == []
