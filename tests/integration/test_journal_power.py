# SPDX-License-Identifier: MIT
"""A simulated loss of power: of each file a disk has the last flushed contents, and perhaps more.

The kernel may have written any other page too, or not. So after the loss the disk has: the database
as its last commit left it; the intake as its last flush left it; and any pages of the intake that
were written since.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus
from procbus.assembly import Makers
from procbus.journal.inspection import Visit
from procbus.journal.journal import Journal
from procbus.journal.storage.database import Store
from procbus.journal.storage.intake import Intake
from tests.parts import BusWith

pytestmark = pytest.mark.slow

PAGE = 4096
HALF = 8 * PAGE
PUBLISHERS = 4
EVENTS = 300
LOSSES = 12
BOUND_S = 60.0


class Disk:
    """The contents of a journal that are safely on the disk, and the events published by then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Called after each move into the database.
        self.on_moved: Callable[[], object] = lambda: None
        self.lock = threading.Lock()
        self.returned: list[str] = []
        self.database: dict[str, bytes] = {}
        self.intake = b""

    def makers(self) -> Makers:
        """Makes a journal that tells when it has flushed a file."""
        disk = self

        class WatchedIntake(Intake):
            def flush(self) -> None:
                with disk.lock:
                    super().flush()
                    disk.intake = disk._read("-intake")

        class WatchedStore(Store):
            def write(self, *changes: Any) -> None:
                with disk.lock:
                    super().write(*changes)
                    disk.database = {suffix: disk._read(suffix) for suffix in ("", "-wal")}
                disk.on_moved()

        # Small halves: they are used again and again, and quickly copied.
        journal = partial(Journal, half=HALF, make_store=WatchedStore, make_intake=WatchedIntake)
        return Makers(journal=journal)

    def _read(self, suffix: str) -> bytes:
        return Path(f"{self.path}{suffix}").read_bytes()

    def lose_power(self, to: Path, chance: random.Random) -> set[str]:
        """Put the remains into a directory; return the ids whose `publish` had returned."""
        with self.lock:
            returned = set(self.returned)
            intake, database = bytearray(self.intake), self.database
            for at, page in self._pages_since(intake):
                if chance.random() < 0.5:
                    intake[at : at + PAGE] = page
        to.mkdir()
        for suffix, data in {**database, "-intake": bytes(intake)}.items():
            file = to / f"run.db{suffix}"
            file.write_bytes(data)
            file.chmod(0o600)
        return returned

    def _pages_since(self, flushed: bytearray) -> list[tuple[int, bytes]]:
        now = self._read("-intake")
        return [
            (at, now[at : at + PAGE])
            for at in range(0, len(flushed), PAGE)
            if now[at : at + PAGE] != flushed[at : at + PAGE]
        ]


@pytest.mark.parametrize("seed", range(2))
def test_every_publish_that_returned_survives_a_loss_of_power(tmp_path: Path, seed: int):
    (tmp_path / "before").mkdir()
    disk = Disk(tmp_path / "before" / "run.db")
    chance = random.Random(seed)
    losses: list[tuple[Path, set[str]]] = []
    with BusWith(disk.makers(), journal=disk.path, durability="power") as bus:
        bus.subscribe(int, abs, name="abs")

        def publish(first: int) -> None:
            for number in range(first, first + EVENTS):
                bus.publish(number, id=str(number))
                with disk.lock:
                    disk.returned.append(str(number))

        publishers = [
            threading.Thread(target=publish, args=(1_000 * n,)) for n in range(PUBLISHERS)
        ]
        for thread in publishers:
            thread.start()
        pause = threading.Event()
        while any(thread.is_alive() for thread in publishers) and len(losses) < LOSSES:
            pause.wait(chance.uniform(0.01, 0.15))
            to = tmp_path / f"loss {len(losses)}"
            if disk.intake and disk.database:
                losses.append((to, disk.lose_power(to, chance)))
        for thread in publishers:
            thread.join(BOUND_S)
    assert len(losses) > 2
    assert any(returned for _, returned in losses)
    for to, returned in losses:
        with Visit(str(to / "run.db")) as visit:
            known = {line.given_id for line in visit.lines()} | {
                given_id
                for (given_id,) in visit._store.rows("SELECT given_id FROM ids")  # noqa: SLF001 - nothing shows them all
            }
        assert returned <= known, f"{len(returned - known)} of {len(returned)} are lost in {to}"


@pytest.mark.parametrize("seed", range(2))
def test_with_durability_process_a_loss_of_power_costs_the_end_and_leaves_no_gap(
    tmp_path: Path, seed: int
):
    """Of the intake any pages are on the disk since the last move: they were never flushed."""
    (tmp_path / "before").mkdir()
    disk = Disk(tmp_path / "before" / "run.db")

    def see_the_intake() -> None:
        intake = disk._read("-intake")  # noqa: SLF001 - the page cache of this moment
        if len(intake) == 2 * HALF:  # it is flushed at the start, with all its blocks
            disk.intake = intake

    disk.on_moved = see_the_intake
    chance = random.Random(seed)
    losses: list[tuple[Path, int]] = []
    with BusWith(disk.makers(), journal=disk.path, io_workers=1, max_pending=100_000) as bus:
        hold = threading.Event()
        bus.subscribe(int, lambda _: hold.wait(BOUND_S), name="hold")
        for number in range(2_000):
            bus.publish(number)
            if disk.intake and not chance.randrange(250):
                disk.returned = [str(number)]
                losses.append((tmp_path / f"loss {len(losses)}", number))
                disk.lose_power(losses[-1][0], chance)
        hold.set()
    assert len(losses) > 2
    for to, last in losses:
        ran: list[int] = []
        with EventBus([], journal=to / "run.db") as again:
            again.subscribe(int, ran.append, name="hold")
            again.subscribe(int, ran.append, name="unknown-1")
        assert again.resume_summary is not None
        missing = set(range(last + 1)) - set(ran)
        if missing and max(ran, default=-1) > min(missing):
            assert again.resume_summary.lost, f"a gap of {len(missing)} that nobody tells of"


def test_moved_records_are_on_the_disk_before_their_half_is_used_again(tmp_path: Path):
    """Else a loss of power could take it from the database, when the intake has it no more."""
    EventBus([], journal=tmp_path / "run.db").close()
    store = Store(str(tmp_path / "run.db"))
    full = 2
    assert store._writing.execute("PRAGMA synchronous").fetchone() == (full,)  # noqa: SLF001 - nothing shows it
    store.close()
