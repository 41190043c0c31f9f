# SPDX-License-Identifier: MIT
"""A journal on the page: its backlog and its newest dead letters, even if no bus has it open."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from time import monotonic, time

from procbus.core.errors import JournalError
from procbus.core.text import printable
from procbus.journal.inspection import STATES, Line, Visit
from procbus.live.plain import cut
from procbus.live.snapshot import Facts

#: Minimum interval between two visits to a journal, in seconds.
VISIT_S = 2.0
#: Minimum interval, as a multiple of the duration of a visit; because a large journal takes long.
TIMES_LONGER = 10.0
#: Maximum of dead letters of a journal that are shown.
DEAD_SHOWN = 50
#: Maximum length of an error's text, and of a name, in characters.
_ERROR = 400
_NAME = 200


class JournalView:
    """One journal. The journal is read for a request, if something may be new. Thread-safe.

    A visit takes the lock of a journal that no bus has, for some milliseconds. A bus that starts in
    that moment would be refused. So such a journal is read again only after its files have changed.

    Args:
        path: the journal.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        #: Held during a visit.
        self._visiting = threading.Lock()
        self._facts: Facts = {}
        self._next_at = 0.0
        #: Sizes and times of the files after the last visit, if no bus had the journal.
        self._files: tuple[tuple[int, int], ...] | None = None

    def read(self) -> Facts:
        """The counts of each handler and the newest dead letters; or `error`, with the reason."""
        with self._visiting:
            if monotonic() >= self._next_at and (self._files is None or self._files != self._now()):
                began = monotonic()
                self._facts = self._visit()
                self._next_at = began + max(VISIT_S, TIMES_LONGER * (monotonic() - began))
            return self._facts

    def retry(self, name: str) -> Facts:
        """Have a dead letter run again: by the bus that has the journal, or at the next start.

        Args:
            name: the delivery, as "EVENT:HANDLER".

        Raises:
            JournalError: there is no such dead letter, or the journal cannot be used.
        """
        with self._visiting, Visit(self.path, change=True) as visit:
            lines = [line for line in visit.find([name]) if line.state == "dead"]
            if not visit.retry(lines):
                raise JournalError(f"{name} is no dead letter any more")
            self._files, self._next_at = None, 0.0
            return {"id": name, "by": visit.owner}

    def _visit(self) -> Facts:
        try:
            with Visit(self.path) as visit:
                status = visit.status()
                dead = [_letter(visit, line) for line in visit.newest_dead(DEAD_SHOWN)]
        except JournalError as error:
            self._files = None
            return {"path": printable(self.path), "error": printable(str(error)), "at": time()}
        self._files = self._now() if visit.owner is None else None
        handlers = {
            printable(cut(name, _NAME)): counts for name, counts in status["handlers"].items()
        }
        totals = {state: sum(each[state] for each in handlers.values()) for state in STATES}
        return {
            "at": time(),
            "path": printable(status["path"]),
            "owner": status["owner"],
            "bytes": status["bytes"],
            "events": status["events"],
            "lost": [printable(str(each)) for each in status["lost"]],
            "handlers": handlers,
            "totals": totals,
            "dead_letters": dead,
        }

    def _now(self) -> tuple[tuple[int, int], ...]:
        found = []
        for name in (self.path, f"{self.path}-wal"):
            with suppress(OSError):
                about = os.stat(name)
                found.append((about.st_size, about.st_mtime_ns))
        return tuple(found)


def _letter(visit: Visit, line: Line) -> Facts:
    """A dead letter; its event stays a pickle, because loading it would run code of the file."""
    outcomes = visit.outcomes(line)
    last = outcomes[-1] if outcomes else {}
    return {
        "id": line.name,
        "event_id": line.event_id,
        "handler": printable(cut(line.handler, _NAME)),
        "topic": printable(cut(line.topic or line.type_name or "", _NAME)),
        "given_id": printable(cut(line.given_id or "", _NAME)),
        "attempts": line.attempts,
        "failed_at": line.at,
        "error": printable(cut(" ".join(str(last.get("text") or "").split()), _ERROR)),
        "stack": "\n".join(map(printable, str(last.get("stack") or "").split("\n"))),
    }
