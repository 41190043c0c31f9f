# SPDX-License-Identifier: MIT
"""Moving into the database what a dead bus left in the intake, and telling what is lost of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from procbus.errors import JournalError
from procbus.journal.changes import Changes
from procbus.journal.frames import Gap, Half, left_in
from procbus.journal.queries import Queries
from procbus.journal.records import Published, records_in
from procbus.journal.store import Store

#: How the bus calls itself that accepts what a loss of power may cost.
_PROCESS = "process "
#: What reading a frame raises that is whole and holds no records.
_BAD = (ValueError, struct.error, IndexError)


def read_left(fd: int, name: str, *, live: bool = False) -> list[Half]:
    """Read what an intake has.

    Args:
        fd: the file.
        name: of it, for the message.
        live: whether a bus is writing to it.

    Raises:
        JournalError: it cannot be read.
    """
    try:
        return left_in(fd, live=live)
    except ValueError as error:
        raise JournalError(
            f"{name} cannot be read: {error}. It holds what was accepted last: take a copy "
            "that is whole; or move it away, and do without"
        ) from error


def recover(
    store: Store,
    queries: Queries,
    left: Sequence[Half],
    name: str,
    *,
    keep_all: bool,
    moved_on: bool = False,
) -> int:
    """Move what is in the intake and not in the database yet.

    What is lost is noted in the database, under "lost", for whoever opens the journal as a bus.

    Args:
        store: the database.
        queries: of the same.
        left: what is in the intake.
        name: of the intake.
        keep_all: whether what is finished is kept.
        moved_on: whether the database may be newer than what was read of the intake.

    Returns:
        The last generation that there was.

    Raises:
        JournalError: the database cannot be written.
    """
    seen: int = queries.meta("generation", 0)
    in_use: str = queries.meta("in_use", "")
    unseen = [half for half in left if half.generation > seen]
    lost: list[str] = []
    if in_use and not unseen and not (moved_on and left):
        lost.append(
            f"{name} is not there, or older than the journal: what was accepted last, behind event "
            f"{queries.last_event()}, is lost"
        )
    if in_use.startswith(_PROCESS) and in_use != user(power=False):
        lost.append(
            "the machine stopped while a bus had the journal (or this is another one), and with "
            'durability="process" the disk may not have what was accepted in the last seconds, '
            f"behind event {_last_of(unseen) or queries.last_event()}"
        )
    changes: list[tuple[int, Changes]] = []
    for half in unseen:
        if half.base > seen:
            lost.append(
                f"{name} goes on later than the journal ends: what happened behind event "
                f"{queries.last_event()}{_before(half.frames)} is lost"
            )
        seen = half.generation
        lost += (told_of_gap(gap, half, name) for gap in half.gaps)
        changes.append((seen, _changes_of(half, name, lost, keep_all=keep_all)))
    last = max((half.generation for half in left), default=seen)
    if not changes and in_use:
        changes.append((max(last, seen), Changes(keep_all)))
    for number, (generation, each) in enumerate(changes, 1):
        meta: dict[str, object] = {"generation": generation}
        if number == len(changes):
            meta["in_use"] = ""
            if lost:
                meta["lost"] = json.dumps([*lost_in(queries), *lost])
        store.write(each, meta)
    return max(last, seen)


def user(*, power: bool) -> str:
    """Say for the next bus who had the journal, and what it would survive."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # macOS
        boot = ""
    return f"power {boot}" if power else f"{_PROCESS}{boot}"


def _last_of(left: Sequence[Half]) -> int:
    return max((event for half in left for event in _events(half.frames)), default=0)


def lost_in(queries: Queries) -> list[str]:
    """What was found to be lost, and no bus has told yet."""
    found: list[str] = json.loads(queries.meta("lost", "[]"))
    return found


def _changes_of(half: Half, name: str, lost: list[str], *, keep_all: bool) -> Changes:
    changes = Changes(keep_all)
    try:
        changes.add_frames(half.frames)
    except _BAD:  # whole frames that make no sense: all but those
        good = [frame for frame in half.frames if _makes_sense(frame)]
        lost.append(
            f"{name} has {len(half.frames) - len(good)} records that this procbus cannot read: "
            "they are lost"
        )
        changes = Changes(keep_all)
        changes.add_frames(good)
    return changes


def _makes_sense(frame: bytes) -> bool:
    try:
        return bool(list(records_in(frame)))
    except _BAD:
        return False


def told_of_gap(gap: Gap, half: Half, name: str) -> str:
    """Say what is lost of a half of the intake that has this name."""
    where = _before(half.frames[gap.frames :])
    behind = next(iter(_events(reversed(half.frames[: gap.frames]))), None)
    if behind is not None:
        where = f" behind event {behind}{' and' if where else ''}{where}"
    return (
        f"{name} is damaged: {gap.size:,} bytes at {gap.at:,} cannot be read, and what they say "
        f"was accepted or finished{where} is lost"
    )


def _before(frames: Sequence[bytes]) -> str:
    first = next(iter(_events(frames)), None)
    return "" if first is None else f" before event {first}"


def _events(frames: Iterable[bytes]) -> Iterable[int]:
    for frame in frames:
        if _makes_sense(frame):
            for record in records_in(frame):
                if isinstance(record, Published):
                    yield record.event_id
