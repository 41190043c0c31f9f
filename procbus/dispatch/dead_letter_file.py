# SPDX-License-Identifier: MIT
"""Dead letters in a file: written whole or not at all, and read only where it is safe to.

The file is one line that says what it is, the number of letters, and for each its length, a
checksum and a pickle of plain data. Events and errors are pickled alone within that: by value,
so that a letter can be read without the script that its classes were defined in; and by name where
that names a class of the main script, so that the same script gets its own class back.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import tempfile
import zlib
from collections.abc import Sequence
from datetime import datetime
from os import PathLike

from procbus.codec.encoder import PROTOCOL
from procbus.codec.fault_path import path_of_fault
from procbus.codec.outcomes import outcome_from, pickles_of, plain_outcome, unpickle
from procbus.core.dead_letter import DeadLetter
from procbus.core.errors import ProcbusError, SerializationError
from procbus.system.files import check_ours

_MAGIC = b"procbus dead letters, version "
VERSION = 1

_COUNT = struct.Struct(">Q")
#: Before each letter: its length and its checksum.
_HEAD = struct.Struct(">QI")


def save_letters(path: str | PathLike[str], letters: Sequence[DeadLetter]) -> None:
    """Write letters to a file that only its owner may read or write, replacing what is there.

    Raises:
        SerializationError: an event cannot be pickled. Nothing was written.
        OSError: the file cannot be written.
    """
    parts = [_MAGIC, b"%d\n" % VERSION, _COUNT.pack(len(letters))]
    for letter in letters:
        data = _encode(letter)
        parts += _HEAD.pack(len(data), zlib.crc32(data)), data
    target = os.path.realpath(path)  # a symbolic link stays one
    directory = os.path.dirname(target)
    # mkstemp makes it readable and writable for its owner alone.
    fd, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(target)}.", dir=directory)
    try:
        with open(fd, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def load_letters(path: str | PathLike[str]) -> list[DeadLetter]:
    """Read the letters of a file. Nothing of it is unpickled before all of it was checked.

    Raises:
        ProcbusError: others may have written the file, or it is not sound, or an event in it
            cannot be loaded.
        OSError: the file cannot be read.
    """
    name = os.fspath(path)
    # O_NONBLOCK: opening a pipe must not wait for its other end.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        # Of the open file, so that no other can take its place between check and reading.
        check_ours(name, os.fstat(fd), ProcbusError)
        with open(fd, "rb", closefd=False) as file:
            data = file.read()
    finally:
        os.close(fd)
    return [_decode(name, record) for record in _records(name, data)]


def _records(name: str, data: bytes) -> list[bytes]:
    """Part a file into its letters, each as it was written; raise if any was not."""
    line, _, rest = data.partition(b"\n")
    version = line.removeprefix(_MAGIC)
    if not line.startswith(_MAGIC) or not version.isdigit():
        raise ProcbusError(f"{name} is not a file of dead letters: give one that save() wrote")
    if int(version) != VERSION:
        raise ProcbusError(
            f"{name} was written by another version of procbus (format {int(version)}, and this "
            f"one reads format {VERSION}): load it with that version, or update procbus"
        )
    view = memoryview(rest)
    records: list[bytes] = []
    try:
        (count,) = _COUNT.unpack_from(view)
        at = _COUNT.size
        for _ in range(count):
            length, checksum = _HEAD.unpack_from(view, at)
            at += _HEAD.size
            record = bytes(view[at : at + length])
            if len(record) != length:
                raise struct.error("the last letter is cut off")
            if zlib.crc32(record) != checksum:
                raise ProcbusError(
                    f"{name} is corrupt: letter {len(records) + 1} of {count} is not what was "
                    "saved. Nothing was loaded; take a copy that is whole"
                )
            records.append(record)
            at += length
    except struct.error:
        raise ProcbusError(
            f"{name} is truncated: it ends after {len(records)} whole letters. Nothing was "
            "loaded; take a copy that is whole"
        ) from None
    if at != len(view):
        raise ProcbusError(
            f"{name} is corrupt: something follows its last letter. Nothing was loaded; take a "
            "copy that is whole"
        )
    return records


def _encode(letter: DeadLetter) -> bytes:
    try:
        event = pickles_of(letter.event)
    except Exception as error:
        path = path_of_fault(letter.event, "event")
        raise SerializationError(
            f"the dead letter of event {letter.event_id} for {letter.handler} cannot be saved"
            f"{f' because of {path}' if path else ''}: {type(error).__name__}: {error}. Nothing "
            "was saved; leave that letter out with filter()",
            path,
        ) from error
    plain = {
        "event_id": letter.event_id,
        "event": event,
        "topic": letter.topic,
        "handler": letter.handler,
        "kind": letter.kind,
        "outcomes": [plain_outcome(outcome) for outcome in letter.outcomes],
        "failed_at": letter.failed_at.isoformat(),
        "quarantined": letter.quarantined,
    }
    return pickle.dumps(plain, PROTOCOL)


def _decode(name: str, record: bytes) -> DeadLetter:
    plain = pickle.loads(record)  # noqa: S301 - as above
    try:
        event = unpickle(plain["event"])
    except Exception as error:
        raise ProcbusError(
            f"event {plain['event_id']} for {plain['handler']} in {name} could not be loaded: "
            f"{type(error).__name__}: {error}. Nothing was loaded; make sure that its classes can "
            "be imported here"
        ) from error
    return DeadLetter(
        event_id=plain["event_id"],
        event=event,
        topic=plain["topic"],
        handler=plain["handler"],
        kind=plain["kind"],
        outcomes=tuple(outcome_from(each) for each in plain["outcomes"]),
        failed_at=datetime.fromisoformat(plain["failed_at"]),
        quarantined=plain["quarantined"],
    )
