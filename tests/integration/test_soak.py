"""Workers are killed at random while mixed events run: every receipt is accounted for."""

import asyncio
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import psutil
import pytest

from procbus import EventBus, OutcomeKind, Receipt, WorkerDied, current
from tests.integration.helpers import Tally

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Event:
    number: int
    tally: Tally
    key: int = 0


class Deliberate(Exception):
    pass


def tiny(event: Event) -> int:
    event.tally.note(event.number)
    return event.number


def failing(event: Event) -> None:
    event.tally.note(event.number)
    raise Deliberate(event.number)


def cascade(event: Event) -> int:
    event.tally.note(event.number)
    current().publish("child", event)
    return event.number


def child(event: Event) -> int:
    event.tally.note(f"child {event.number}")
    return event.number


def kill_one(bus: EventBus, choose: random.Random) -> bool:
    """Kill some worker of the bus; False if none is up just now."""
    pids = [h.pid for h in bus.health() if h.kind == "cpu" and h.pid is not None]
    if not pids:
        return False
    try:
        os.kill(choose.choice(pids), signal.SIGKILL)
    except ProcessLookupError:  # it is dead already
        return False
    return True


def run_mixed(events: int, seed: int, every: int, tmp_path: Path) -> dict[str, int]:
    tally = Tally(str(tmp_path / "tally"))
    in_order: list[tuple[int, int]] = []
    settlements: Counter[int] = Counter()
    receipts: list[Receipt] = []
    choose = random.Random(seed)
    with EventBus([], cpu_workers=2, max_pending=200) as bus:
        bus.subscribe("tiny", tiny, kind="cpu")
        bus.subscribe("failing", failing, kind="cpu")
        bus.subscribe("cascade", cascade, kind="cpu")
        bus.subscribe("child", child, kind="cpu")
        bus.subscribe("keyed", tiny, kind="cpu", key=lambda event: event.key)
        bus.subscribe("io", lambda event: event.number)
        bus.subscribe(
            "io.keyed",
            lambda event: in_order.append((event.key, event.number)),
            key=lambda event: event.key,
        )

        @bus.subscribe("async")
        async def in_loop(event):
            await asyncio.sleep(0)
            return event.number

        bus.publish("tiny", Event(-1, tally)).result(55)
        kills = 0
        topics = ["tiny", "failing", "cascade", "keyed", "io", "io.keyed", "async"]
        for number in range(events):
            receipt = bus.publish(choose.choice(topics), Event(number, tally, choose.randrange(5)))
            receipt.when_done(lambda r: settlements.update([r.id]))
            receipts.append(receipt)
            if choose.randrange(every) == 0:
                kills += kill_one(bus, choose)
        assert bus.drain(240), bus.stats()
        stats = bus.stats()
        pids = {h.pid for h in bus.health()}
    assert not any(psutil.pid_exists(pid) for pid in pids - {os.getpid()} if pid)

    executions = tally.counts()
    assert set(settlements.values()) == {1}
    assert len(settlements) == events
    died = 0
    children = 0
    for number, receipt in enumerate(receipts):
        (delivery,) = receipt.deliveries
        outcome = delivery.outcome
        assert outcome is not None
        ran = executions[str(number)]
        if outcome.kind is OutcomeKind.WORKER_DIED:
            died += 1
            assert isinstance(outcome.error, WorkerDied)
            assert outcome.error.exit_code == -signal.SIGKILL
            assert ran <= 1
            assert receipt.topic in ("tiny", "failing", "cascade", "keyed")
        elif receipt.topic == "failing":
            assert isinstance(outcome.error, Deliberate), outcome
            assert outcome.error.args == (number,)
            assert ran == 1
        else:
            assert outcome.kind is OutcomeKind.SUCCEEDED, outcome
            assert receipt.topic == "io.keyed" or outcome.value == number
            assert ran == (receipt.topic in ("tiny", "cascade", "keyed"))
            children += receipt.topic == "cascade"
    assert stats.handlers[f"{__name__}.child"].published == children
    assert max(executions.values()) == 1, "nothing runs twice"
    # Of each key in the order of publishing, on both lanes.
    for _, group in groupby(sorted(in_order, key=lambda pair: pair[0]), lambda pair: pair[0]):
        numbers = [number for _, number in group]
        assert numbers == sorted(numbers)
    keyed = {str(n): r.event.key for n, r in enumerate(receipts) if r.topic == "keyed"}
    for key in range(5):
        ran_in_order = [int(line) for line in tally.lines() if keyed.get(line) == key]
        assert ran_in_order == sorted(ran_in_order)
    return {"kills": kills, "died": died, "restarts": stats.lanes["cpu"].restarts}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "procbus")


@pytest.mark.parametrize("seed", [1, 2])
def test_every_receipt_is_accounted_for_while_workers_are_killed(tmp_path: Path, seed: int) -> None:
    counts = run_mixed(3_000, seed, 200, tmp_path)
    assert counts["kills"] >= 1
    assert counts["restarts"] >= 1


@pytest.mark.soak
@pytest.mark.timeout(290)
def test_soak_every_one_of_many_receipts_is_accounted_for(tmp_path: Path) -> None:
    counts = run_mixed(200_000, 7, 1_000, tmp_path)
    assert counts["kills"] >= 10
    print(counts)  # noqa: T201 - the result of the soak
