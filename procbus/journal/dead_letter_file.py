# SPDX-License-Identifier: MIT
"""Dead letters in a file: written whole or not at all, and read only where that is safe.

The file is a journal that holds only dead letters, so the command line can look into it. An extra
table has the facts that a journal does not need: the order of the letters, the number of each event
on its own bus (letters of several runs may share a number), and a checksum for each letter.

An event is pickled by value, so that a letter can be read without the script that defined its
classes. If the main script defined them, the event is pickled by name too, so that the same script
gets its own class back.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from os import PathLike
from typing import Any

from procbus.codec.fault_path import path_of_fault
from procbus.codec.outcomes import pickles_of, unpickle
from procbus.core.dead_letter import DeadLetter
from procbus.core.errors import JournalError, ProcbusError, SerializationError
from procbus.core.frames import useful_cause
from procbus.journal.codec import DataForm, PickleCodec
from procbus.journal.storage.database import Image
from procbus.journal.storage.records import SHIFT
from procbus.system.files import check_ours

#: The file format of older versions of procbus.
_OLD = b"procbus dead letters, version "

_TABLE = """
    CREATE TABLE letters (
        position INTEGER PRIMARY KEY,
        number INTEGER NOT NULL,
        event_id INTEGER NOT NULL,
        kind TEXT NOT NULL,
        by_value BLOB,
        checksum INTEGER NOT NULL
    )
"""
#: A letter that the command line has run again is no longer in `dead`.
_LETTERS = """
    SELECT letters.event_id, letters.kind, by_value, dead.failed_at, quarantined, outcomes, topic,
        data, handlers.name, checksum
    FROM letters JOIN dead ON dead.number = letters.number
        JOIN events ON events.id = letters.number >> ?
        JOIN handlers ON handlers.number = letters.number & ?
    ORDER BY position
"""

_codec = PickleCodec()


def save_letters(path: str | PathLike[str], letters: Sequence[DeadLetter]) -> None:
    """Write letters to a file that only its owner may read or write, replacing an old one.

    Raises:
        SerializationError: an event cannot be pickled. Nothing was written.
        OSError: the file cannot be written.
    """
    data = _image_of(letters)
    target = os.path.realpath(path)  # a symbolic link stays a symbolic link
    directory = os.path.dirname(target)
    # mkstemp makes it readable and writable for its owner alone.
    fd, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(target)}.", dir=directory)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def load_letters(path: str | PathLike[str]) -> list[DeadLetter]:
    """Read the letters of a file. No letter is unpickled before all of them were checked.

    Raises:
        ProcbusError: other users may have written the file, or the file is damaged, or an event in
            it cannot be loaded.
        OSError: the file cannot be read.
    """
    name = os.fspath(path)
    # O_NONBLOCK: opening a pipe must not wait for its other end.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        # The open file is checked, so that no other file can take its place between check and
        # reading.
        check_ours(name, os.fstat(fd), ProcbusError)
        with open(fd, "rb", closefd=False) as file:
            data = file.read()
    finally:
        os.close(fd)
    if data.startswith(_OLD):
        raise ProcbusError(
            f"{name} was saved by an earlier procbus, in a format of its own that is no longer "
            "read: load it with that procbus, and replay the letters there"
        )
    return [_letter_from(name, row) for row in _rows_of(name, data)]


# Writing.


def _image_of(letters: Sequence[DeadLetter]) -> bytes:
    """The bytes of a journal that holds these letters."""
    handlers: dict[str, tuple[int, str]] = {}
    events: dict[int, tuple[Any, ...]] = {}
    dead: list[tuple[Any, ...]] = []
    order: list[tuple[Any, ...]] = []
    for letter, id in zip(letters, _ids_for(letters), strict=True):
        by_name, by_value = _pickles_of_event(letter)
        if by_name is None:
            by_name, by_value = by_value, None
        failed_at = letter.failed_at.timestamp()
        handler, _ = handlers.setdefault(letter.handler, (len(handlers) + 1, letter.kind))
        number = id << SHIFT | handler
        outcomes = _codec.encode_outcomes(letter.outcomes)
        type_name = _codec.type_name(type(letter.event))
        events[id] = (id, failed_at, letter.topic, type_name, DataForm.PICKLE, by_name)
        dead.append((number, letter.attempts, failed_at, int(letter.quarantined), outcomes))
        row = (letter.event_id, letter.kind, by_value, *dead[-1][2:], letter.topic, by_name)
        checksum = _checksum(*row, letter.handler)
        order.append((number, letter.event_id, letter.kind, by_value, checksum))
    with Image() as image:
        image.run(_TABLE)
        image.insert("meta(name, value)", [("codec", "pickle")])
        image.insert("handlers(number, kind, name)", [(n, k, h) for h, (n, k) in handlers.items()])
        image.insert("events(id, published_at, topic, type_name, form, data)", events.values())
        image.insert("dead(number, attempts, failed_at, quarantined, outcomes)", dead)
        image.insert("letters(number, event_id, kind, by_value, checksum)", order)
        return image.data()


def _ids_for(letters: Sequence[DeadLetter]) -> Iterator[int]:
    """For each letter an id for its event: its own, unless another letter of the file has that."""
    free = max((letter.event_id for letter in letters), default=0) + 1
    taken: set[int] = set()
    for letter in letters:
        id = letter.event_id
        if id in taken:
            id, free = free, free + 1
        taken.add(id)
        yield id


def _pickles_of_event(letter: DeadLetter) -> tuple[bytes | None, bytes | None]:
    try:
        return pickles_of(letter.event)
    except Exception as error:  # noqa: BLE001 - the user's code
        path = path_of_fault(letter.event, "event")
        raise SerializationError(
            f"the dead letter of event #{letter.event_id} for {letter.handler} cannot be saved"
            f"{f' because of {path}' if path else ''}: {type(error).__name__}: {error}. Nothing "
            "was saved; leave that letter out with filter()",
            path,
        ) from useful_cause(error)


def _checksum(*values: object) -> int:
    """A checksum of the values of one letter, as the database gives them back."""
    found = 0
    for value in values:
        found = zlib.crc32(value if isinstance(value, bytes) else repr(value).encode(), found)
    return found


# Reading.


def _rows_of(name: str, data: bytes) -> list[tuple[Any, ...]]:
    """Take a file apart into its letters; raise if a letter is not as it was written."""
    if not Image.is_journal(data):
        raise ProcbusError(f"{name} is not a file of dead letters: give one that save() wrote")
    if (size := Image.size_of(data)) != len(data):
        raise ProcbusError(
            f"{name} is {'truncated' if len(data) < size else 'corrupt'}: it has {len(data):,} "
            f"bytes in place of {size:,}. Nothing was loaded; load an undamaged copy"
        )
    try:
        with Image(data) as image:
            if (version := image.newer_version()) is not None:
                raise ProcbusError(
                    f"{name} was written by a newer procbus (schema {version}): update procbus"
                )
            rows = image.rows(_LETTERS, (SHIFT, (1 << SHIFT) - 1))
            bad = image.damage()
    except JournalError as error:
        if "no such table: letters" in str(error):
            raise ProcbusError(
                f"{name} is the journal of a bus: EventBus(journal=...) has its dead letters"
            ) from None
        bad = str(error)
    if not bad:
        wrong = [at for at, row in enumerate(rows, 1) if _checksum(*row[:-1]) != row[-1]]
        bad = f"letter {wrong[0]} of {len(rows)} differs from the saved one" if wrong else ""
    if bad:
        raise ProcbusError(f"{name} is corrupt: {bad}. Nothing was loaded; load an undamaged copy")
    return rows


def _letter_from(name: str, row: tuple[Any, ...]) -> DeadLetter:
    event_id, kind, by_value, failed_at, quarantined, outcomes, topic, data, handler, _ = row
    try:
        event = unpickle((None, data) if by_value is None else (data, by_value))
    except Exception as error:  # noqa: BLE001 - the user's code
        raise ProcbusError(
            f"event #{event_id} for {handler} in {name} could not be loaded: "
            f"{type(error).__name__}: {error}. Nothing was loaded; make sure that its classes can "
            "be imported here"
        ) from useful_cause(error)
    return DeadLetter(
        event_id=event_id,
        event=event,
        topic=topic,
        handler=handler,
        kind=kind,
        outcomes=_codec.decode_outcomes(outcomes),
        failed_at=datetime.fromtimestamp(failed_at, UTC),
        quarantined=bool(quarantined),
    )
