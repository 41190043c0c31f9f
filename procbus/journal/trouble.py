# SPDX-License-Identifier: MIT
"""What is wrong with a journal, in words, and what to do about it."""

from __future__ import annotations

import os
import shutil

from procbus.errors import JournalError

#: Bytes: with less than this left, a disk is full for whoever needs a few pages.
_NEXT_TO_NOTHING = 1 << 20

_ADVICE = {
    "SQLITE_FULL": (
        "the disk is full: make room on it, and start again. What was accepted is not lost"
    ),
    "SQLITE_READONLY": "it cannot be written: make the file and its directory writable for you",
    "SQLITE_CANTOPEN": "it cannot be written: make the file and its directory writable for you",
    "SQLITE_CORRUPT": (
        "it is corrupt: take a copy that is sound; or save what can be read with the `.recover` of "
        "sqlite3, and begin a new journal"
    ),
    "SQLITE_NOTADB": "it is corrupt, or not a journal at all: give the journal a name of its own",
    "SQLITE_BUSY": "another program holds it: end that, and start again",
    "SQLITE_IOERR": "the disk failed to read or write it: look at the system's log",
}


def trouble(path: str, error: Exception) -> JournalError:
    """Make a JournalError of an error of SQLite, or of another one.

    Args:
        path: of the journal.
        error: what came up.
    """
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith("SQLITE_IOERR") and _is_full(path):
        name = f"SQLITE_FULL, {name}"  # what maps a file into memory cannot tell the two apart
    advice = next((text for key, text in _ADVICE.items() if name.startswith(key)), "")
    if not advice:
        return JournalError(f"the journal {path} cannot be used: {type(error).__name__}: {error}")
    return JournalError(f"the journal {path}: {advice} ({name}: {error})")


def _is_full(path: str) -> bool:
    try:
        return shutil.disk_usage(os.path.dirname(path)).free < _NEXT_TO_NOTHING
    except OSError:
        return False
