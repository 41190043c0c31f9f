# SPDX-License-Identifier: MIT
"""The last reports and answers of a distant worker, which arrive on the event loop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from time import monotonic
from typing import Any

from procbus.core.progress import Progress
from procbus.pool.dask.clock_skew import progress_here
from procbus.pool.interface import At
from procbus.pool.logbook import Reported
from procbus.system.cooperative import Task
from procbus.system.footprint import Footprint
from procbus.system.process import Details

#: Maximum wait for an answer, in seconds.
ANSWER_S = 5.0


class RemoteState:
    """The newest reports of a distant worker.

    Only the event loop calls `take`. Any thread may read the reports.

    Args:
        say: sends a message to the worker's host.
        answer_s: maximum wait for an answer, in seconds.
    """

    def __init__(self, say: Callable[..., object], *, answer_s: float = ANSWER_S) -> None:
        self._say = say
        self._answer_s = answer_s
        #: Seconds to add to a time of the other machine to get a time of this one.
        self.ahead_s = 0.0
        self.pid: int | None = None
        #: The delivery that it runs, by the clock here and by its own clock.
        self.at: tuple[At, At] | None = None
        #: The last report of a handler, by its own clock.
        self.reported: Reported | None = None
        self.set_up_since: float | None = None
        #: Details of its process, some seconds old.
        self.details: Details | None = None
        #: The delivery during which its memory is watched, which only the supervisor uses. Then the
        #: last amount above the limit, with its delivery. Both deliveries are by its own clock.
        self._watched: At | None = None
        self._above: tuple[At, Footprint] | None = None
        #: The pending answer.
        self._answer: Future[dict[str, Any]] | None = None

    def take(self, message: dict[str, Any]) -> bool:
        """Take a message if it belongs here; return whether it does."""
        match message["say"]:
            case "at":
                batch, index, since = message["at"]
                self.at = (batch, index, since + self.ahead_s), (batch, index, since)
            case "progress":
                self.reported = Reported(*message["reported"])
            case "set up":
                since = message["since"]
                self.set_up_since = None if since is None else since + self.ahead_s
            case "details":
                found = message["details"]
                self.details = None if found is None else Details(*found)
            case "above":
                batch, index, since = message["at"]
                self._above = (batch, index, since), Footprint(*message["memory"])
            case "pid":
                self.pid = message["pid"]
            case "halted" | "stack":
                self._take_answer(message)
            case _:
                return False
        return True

    def _take_answer(self, message: dict[str, Any]) -> None:
        try:
            assert self._answer is not None
            self._answer.set_result(message)
        except InvalidStateError:  # the question was given up
            if message["say"] == "halted" and message["still"]:
                self._say(do="resume")

    def ask(self, **question: Any) -> Task[dict[str, Any] | None]:
        """Ask its host, and wait for the answer; None if none comes in time. One call at a time."""
        answer: Future[dict[str, Any]] = Future()
        self._answer = answer
        self._say(**question)
        deadline = monotonic() + self._answer_s
        while not answer.done() and monotonic() < deadline:
            yield
        return None if answer.cancel() else answer.result()

    def watch(self, at: At, limit: int) -> Footprint | None:
        """Have its host watch its memory, see `Worker.watch_memory`; return the last report."""
        said, above = self.at, self._above
        if said is None or said[0] != at:
            return None
        if self._watched != said[1]:
            self._watched = said[1]
            self._say(do="watch", at=said[1], limit=limit)
        return above[1] if above is not None and above[0] == said[1] else None

    def progress(self, at: At) -> Progress | None:
        """The last report of the handler of a delivery, by the clock here."""
        said, reported = self.at, self.reported
        if reported is None or said is None or said[0] != at:
            return None
        return progress_here(reported.during(*at[:2]), self.ahead_s)

    def forget(self) -> None:
        """Drop everything, because the worker is gone."""
        self.at = self.reported = self.set_up_since = self.details = None
