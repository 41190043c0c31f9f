# SPDX-License-Identifier: MIT
"""Opening a journal: its identity, the recovery of its intake, and a count of its contents."""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from procbus.core.errors import JournalError
from procbus.core.log import journal_log as log
from procbus.journal.codec import CodecName
from procbus.journal.storage.changes import Changes
from procbus.journal.storage.database import Store
from procbus.journal.storage.frames import Gap, Half, left_in
from procbus.journal.storage.names import name_of_nameless
from procbus.journal.storage.queries import Queries
from procbus.journal.storage.records import PublishedRecord, records_in

# Moving a dead bus's intake into the database, and reporting losses.

#: Prefix of the user name of a bus whose last records do not survive a loss of power.
_PROCESS = "process "
#: Errors of reading a frame that is whole but holds no records.
_BAD = (ValueError, struct.error, IndexError)


def read_left(fd: int, name: str, *, live: bool = False) -> list[Half]:
    """Read an intake.

    Args:
        fd: descriptor of the file.
        name: name of the file, for the message.
        live: whether a bus is writing to it.

    Raises:
        JournalError: it cannot be read.
    """
    try:
        return left_in(fd, live=live)
    except ValueError as error:
        raise JournalError(
            f"{name} cannot be read: {error}. It holds the events accepted last: put an "
            "undamaged copy in its place; or move it away, and lose those events"
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
    """Move records of the intake that are not in the database yet.

    Losses are noted in the database, under "lost", for the next bus that opens the journal.

    Args:
        store: the database.
        queries: queries to the same database.
        left: the contents of the intake.
        name: name of the intake.
        keep_all: whether all finished deliveries are kept.
        moved_on: whether the database may be newer than the contents of the intake.

    Returns:
        The last generation of either.

    Raises:
        JournalError: the database cannot be written.
    """
    seen: int = queries.meta("generation", 0)
    in_use: str = queries.meta("in_use", "")
    unseen = [half for half in left if half.generation > seen]
    lost: list[str] = []
    if in_use and not unseen and not (moved_on and left):
        lost.append(
            f"{name} is not there, or older than the journal: the events accepted last, behind "
            f"event #{queries.last_event()}, are lost"
        )
    if in_use.startswith(_PROCESS) and in_use != user(power=False):
        lost.append(
            "the machine stopped while a bus had the journal (or this is another one), and with "
            'durability="process" the disk may not have the events accepted in the last seconds, '
            f"behind event #{_last_of(unseen) or queries.last_event()}"
        )
    changes: list[tuple[int, Changes]] = []
    for half in unseen:
        if half.base > seen:
            lost.append(
                f"{name} begins later than the journal ends: the records behind event "
                f"#{queries.last_event()}{_before(half.frames)} are lost"
            )
        seen = half.generation
        lost += (sentence_on_gap(gap, half, name) for gap in half.gaps)
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
    """Name the user of a journal for the next bus, and tell whether it risks a loss of records."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # macOS
        boot = ""
    return f"power {boot}" if power else f"{_PROCESS}{boot}"


def _last_of(left: Sequence[Half]) -> int:
    return max((event for half in left for event in _events(half.frames)), default=0)


def lost_in(queries: Queries) -> list[str]:
    """Return the losses that no bus has reported yet."""
    found: list[str] = json.loads(queries.meta("lost", "[]"))
    return found


def _changes_of(half: Half, name: str, lost: list[str], *, keep_all: bool) -> Changes:
    changes = Changes(keep_all)
    try:
        changes.add_frames(half.frames)
    except _BAD:  # some whole frames make no sense: only these are left out
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


def sentence_on_gap(gap: Gap, half: Half, name: str) -> str:
    """Describe a loss in a half of the intake with this name."""
    where = _before(half.frames[gap.frames :])
    behind = next(iter(_events(reversed(half.frames[: gap.frames]))), None)
    if behind is not None:
        where = f" behind event #{behind}{' and' if where else ''}{where}"
    return (
        f"{name} is damaged: {gap.size:,} bytes at {gap.at:,} cannot be read, and the records in "
        f"them{where} are lost"
    )


def _before(frames: Sequence[bytes]) -> str:
    first = next(iter(_events(frames)), None)
    return "" if first is None else f" before event #{first}"


def _events(frames: Iterable[bytes]) -> Iterable[int]:
    for frame in frames:
        if _makes_sense(frame):
            for record in records_in(frame):
                if isinstance(record, PublishedRecord):
                    yield record.event_id


@dataclass(frozen=True, slots=True)
class Found:
    """The contents of a journal when it was opened.

    Attributes:
        pending: number of unfinished deliveries, by the name of their handler.
        dead: number of dead letters, by the name of their handler.
        lost: the losses of the journal, in a sentence each.
    """

    pending: Mapping[str, int]
    dead: Mapping[str, int]
    lost: tuple[str, ...]


def what_is_in(store: Store, queries: Queries) -> Found:
    """Count the contents of a journal, and log its losses.

    A handler whose name is lost gets another name. So its deliveries are kept and reported, and no
    other handler gets its number.

    Raises:
        JournalError: the journal cannot be read or written.
    """
    lost = tuple(lost_in(queries))
    for each in lost:
        log.error("the journal %s has lost records: %s", store.path, each)
    counts = queries.counts()
    names = {number: name for number, _, name in queries.handlers()}
    numbers = counts["pending"].keys() | counts["dead"].keys()
    if lost:
        numbers |= queries.handlers_of_finished()
    nameless = sorted(numbers - names.keys())
    if nameless or lost:
        changes = Changes(True)
        changes.handlers = [(number, "io", name_of_nameless(number)) for number in nameless]
        store.write(changes, {"lost": "[]"})
        names |= {number: name for number, _, name in changes.handlers}
    pending, dead = (
        {names[number]: count for number, count in counts[table].items()}
        for table in ("pending", "dead")
    )
    return Found(pending, dead, lost)


def identify(store: Store, queries: Queries, codec: CodecName, *, keep_all: bool) -> str:
    """Return the id of a journal. The first bus of a journal gives the journal its id.

    Raises:
        JournalError: the journal was begun with another codec, or cannot be written.
    """
    journal_id: str = queries.meta("id", None) or secrets.token_hex(4)
    known: str = queries.meta("codec", codec)
    if known != codec:
        raise JournalError(
            f'the journal {store.path} was begun with journal_codec="{known}": open it with that '
            "codec, or begin a new journal"
        )
    meta = {"id": journal_id, "codec": codec, "keep_all": keep_all}
    if any(queries.meta(name, None) != value for name, value in meta.items()):
        store.write(Changes(True), meta)
    return journal_id


# Reserving ids, so that no id of an event is given twice, even after a loss.

#: Number of ids reserved at a time: far more than are given between two moves into the database.
RESERVED = 1_000_000


class Reservation:
    """The ids that may be given, written to the disk ahead of time. Not thread-safe.

    With durability="process" a loss of power may cost the last events. But notes that handlers
    wrote elsewhere under the ids of these events may survive. A new event with such an id would
    seem to be done already.

    Args:
        store: the database.
        before: largest id that earlier runs may have given.
        user: the name from `user`; the next bus finds this name if this bus does not end properly.
        number: number of ids reserved at a time.

    Raises:
        JournalError: the database cannot be written.
    """

    def __init__(self, store: Store, before: int, user: str, number: int = RESERVED) -> None:
        self._store = store
        self._number = number
        self._user = user
        self._before = before
        self._upto = before
        self.extend(before)

    def extend(self, last_id: int) -> None:
        """Reserve more ids, once half of them are given.

        Raises:
            JournalError: the database cannot be written.
        """
        if last_id + self._number // 2 > self._upto:
            self._upto = max(self._upto, last_id) + self._number
            self._store.reserve_ids(self._upto, in_use=self._user)

    def end(self, last_id: int) -> None:
        """Return unused ids, once all records are in the database and the intake is empty.

        Raises:
            JournalError: the database cannot be written; the ids stay reserved.
        """
        self._store.reserve_ids(max(self._before, last_id), in_use="")
