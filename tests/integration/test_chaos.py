"""Everything goes wrong at random, for as long as is wanted; all is accounted for.

Seconds and seed may be given: PROCBUS_SOAK_S=600 PROCBUS_SOAK_SEED=7 pytest -m soak -k chaos -s
"""

import faulthandler
import gc
import logging
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
import pytest

from procbus import CircuitOpen, DeadLetter, DeliveryState, EventBus, Outcome, Receipt
from tests.integration import chaos
from tests.integration.chaos import CANCELLED, DIED, MIB, PARTS, SUCCEEDED, Adversary, Event
from tests.integration.helpers import Tally, wait_gone

pytestmark = pytest.mark.slow

SOAK_S = float(os.environ.get("PROCBUS_SOAK_S", "300"))
#: After the time is up the last round ends, which takes its own time.
GRACE_S = 100.0
#: Events of one round at most: its receipts are kept, to be looked at.
MOST_EVENTS = 5_000
#: Maximum growth of the parent once it is warm, in bytes.
GROWTH_BYTES = 24 * MIB


@dataclass
class Round:
    """One life of a bus."""

    number: int
    tally: Tally
    choose: random.Random
    receipts: list[Receipt] = field(default_factory=list)
    settled: Counter[int] = field(default_factory=Counter)
    letters: list[DeadLetter] = field(default_factory=list)
    refused: int = 0

    def play(self, seconds: float) -> Counter[str]:
        """Open a bus, publish and wreak havoc, close it, and account for everything."""
        choose = self.choose
        bus = EventBus(
            [],
            cpu_workers=2,
            io_workers=4,
            max_pending=200,
            max_events_per_worker=choose.choice([None, None, 500]),
            worker_max_memory=choose.choice([None, "200 MiB"]),
            on_failure=self.letters.append,
        )
        for part in PARTS.values():
            bus.subscribe(part.name, part.handler, name=part.name, **part.options)
        adversary = Adversary(bus, choose.randrange(1 << 30), choose.choice([0.2, 0.5, 1.0]))
        ending = choose.choice(["drain", "drain", "drain", "timeout", "cancel"])
        with bus:
            adversary.start()
            try:
                self._publish(bus, seconds)
                if ending == "timeout":
                    bus.close(timeout=choose.uniform(0.0, 1.0))
                elif ending == "cancel":
                    bus.close(cancel=True)
                else:
                    bus.close()
            finally:
                adversary.stop()
        wait_gone(adversary.seen)
        self._account(bus, ending)
        fates = Counter(_outcome(receipt).kind.value for receipt in self.receipts)
        return fates + adversary.did + Counter({"refused": self.refused, ending: 1})

    def _publish(self, bus: EventBus, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and len(self.receipts) < MOST_EVENTS:
            (topic,) = self.choose.choices(chaos.TOPICS, chaos.WEIGHTS)
            event = Event(len(self.receipts), self.tally, self.choose.randrange(5))
            try:
                receipt = bus.publish(topic, event)
            except CircuitOpen:
                self.refused += 1
                continue
            receipt.when_done(lambda receipt: self.settled.update([receipt.id]))
            self.receipts.append(receipt)

    def _account(self, bus: EventBus, ending: str) -> None:
        receipts = self.receipts
        assert self.settled == Counter(receipt.id for receipt in receipts), "once, and all"
        stats = bus.stats()
        assert (stats.pending, stats.retrying) == (0, 0)
        for name, handler in stats.handlers.items():
            ended = handler.succeeded + handler.failed + handler.cancelled
            assert handler.published == ended, (name, handler)

        runs: dict[tuple[str, int], list[int]] = defaultdict(list)
        by_key: dict[str, list[int]] = defaultdict(list)
        for line in self.tally.lines():
            topic, event, attempt, key = line.split()
            runs[topic, int(event)].append(int(attempt))
            if topic == "keyed":
                by_key[key].append(int(event))
        for (topic, number), attempts in runs.items():
            assert len(set(attempts)) == len(attempts), f"{topic} {number} ran twice: {attempts}"
            assert len(attempts) <= 1 + PARTS[topic].options.get("retries", 0)
        for numbers in by_key.values():
            assert numbers == sorted(numbers)

        for number, receipt in enumerate(receipts):
            self._account_for(receipt, runs[receipt.topic or "", number], ending)
        if ending == "drain":
            cascades = [r for r in receipts if r.topic == "cascade"]
            succeeded = sum(_outcome(r).kind is SUCCEEDED for r in cascades)
            assert stats.handlers["child"].published == succeeded
        told = Counter((letter.handler, letter.event_id) for letter in self.letters)
        assert set(told.values()) <= {1}
        failed = sum(handler.failed for handler in stats.handlers.values())
        assert len(told) == failed

    def _account_for(self, receipt: Receipt, attempts: list[int], ending: str) -> None:
        (delivery,) = receipt.deliveries
        outcome = _outcome(receipt)
        part = PARTS[receipt.topic or ""]
        allowed = part.ends | (set() if ending == "drain" else {CANCELLED})
        assert outcome.kind in allowed, (receipt, outcome)
        assert {earlier.kind for earlier in delivery.earlier} <= {*part.ends, chaos.RAISED}
        if outcome.kind is SUCCEEDED:
            assert delivery.state is DeliveryState.SUCCEEDED
            assert outcome.value == (
                bytes(400_000) if part.name == "large" else receipt.event.number
            )
            assert attempts[-1] == delivery.attempts
        elif outcome.kind is DIED:
            assert part.on_cpu
        if outcome.started_at and outcome.kind is not DIED and outcome.kind is not CANCELLED:
            # Killed just as it begins it is charged, but its handler may not have noted that.
            assert attempts, (receipt, outcome)


def _outcome(receipt: Receipt) -> Outcome:
    (delivery,) = receipt.deliveries
    assert delivery.outcome is not None, receipt
    return delivery.outcome


class Complaints(logging.Filter):
    """Notes procbus's own log, and keeps all records from pytest, which would hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if "procbus itself failed" in record.getMessage():
            self.said.append(logging.Formatter().format(record))
        return False


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    complaints = Complaints()
    flood = logging.getLogger("job.flood")
    flood.setLevel(logging.INFO)
    logs = [logging.getLogger("procbus"), flood]
    for log in logs:
        log.addFilter(complaints)
    yield complaints.said
    for log in logs:
        log.removeFilter(complaints)
    flood.setLevel(logging.NOTSET)


def run_chaos(seconds: float, seed: int, longest_s: float, tmp_path: Path) -> Counter[str]:
    """Play rounds of up to `longest_s` seconds each until the time is up."""
    choose = random.Random(seed)
    print(f"chaos with seed {seed} for {seconds:g} s")  # noqa: T201 - to run it again
    until = time.monotonic() + seconds
    total: Counter[str] = Counter()
    sizes: list[int] = []
    number = 0
    while time.monotonic() < until or number < 2:  # it is opened again once at least
        number += 1
        tally = Tally(str(tmp_path / f"tally-{number}"))
        length_s = min(choose.uniform(0.5, longest_s), max(0.5, until - time.monotonic()))
        total += Round(number, tally, random.Random(choose.randrange(1 << 30))).play(length_s)
        Path(tally.path).unlink(missing_ok=True)
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss)
    third = max(1, len(sizes) // 3)
    warm, end = median(sizes[:third] if third > 1 else sizes[:2]), median(sizes[-third:])
    total["rounds"] = number
    print(dict(total), f"memory {warm / MIB:.1f} MiB, at the end {end / MIB:.1f} MiB")  # noqa: T201
    assert end - warm < GROWTH_BYTES, [round(size / MIB, 1) for size in sizes]
    return total


@pytest.mark.timeout(10 + 2 * GRACE_S)
def test_ten_seconds_of_chaos_are_accounted_for(tmp_path: Path, complaints: list[str]) -> None:
    total = run_chaos(10.0, 1, 4.0, tmp_path)
    assert complaints == []
    assert total["succeeded"] >= 100
    assert total["SIGKILL"] + total["SIGTERM"] >= 1
    assert total["worker died"] >= 1


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + GRACE_S)
def test_soak_chaos_is_accounted_for(tmp_path: Path, complaints: list[str]) -> None:
    # pytest would end the run after its own time.
    faulthandler.cancel_dump_traceback_later()
    faulthandler.dump_traceback_later(SOAK_S + 2 * GRACE_S, exit=True)
    try:
        seed = int(os.environ.get("PROCBUS_SOAK_SEED") or random.randrange(1 << 30))
        run_chaos(SOAK_S, seed, 15.0, tmp_path)
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert complaints == []
