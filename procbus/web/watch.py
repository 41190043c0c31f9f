# SPDX-License-Identifier: MIT
"""The buses that a server shows: newest snapshot and history of each, and the pages that look.

All objects here belong to one event loop. Asking a bus blocks, so a thread asks it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from starlette.concurrency import run_in_threadpool

from procbus.live.client import (
    LIVE_ANSWER_S,
    Declined,
    Gone,
    LiveConnection,
    NoAnswer,
    living,
)
from procbus.live.snapshot import Facts
from procbus.live.sockets import BusSocket
from procbus.live.stuck import stacks_by_signal

#: Interval between two looks at a bus, in seconds: while a page shows it, and while no page does.
LOOK_S = 1.0
SELDOM_S = 10.0
#: Maximum of points in the history of a bus; because a plot is not wider in pixels.
MOST_POINTS = 1200
#: Maximum of buses that have ended and are still shown.
MOST_ENDED = 20
#: Maximum wait for an action, in seconds; because replaying waits for room on the bus.
ACTION_S = 30.0

Liveness = Literal["live", "silent", "ended"]
#: A history gets one more point, another last point, or half of its points.
Change = Literal["added", "moved", "thinned"]


class Point(NamedTuple):
    """The facts of one moment that plots show. Counts go up from the start of the bus."""

    at: float
    succeeded: int
    failed: int
    pending: int
    io_busy: int
    cpu_busy: int


class History:
    """Points at even intervals, from the first look on. A full history doubles its interval.

    Args:
        most: maximum of points.
        interval_s: interval of the first points, in seconds.
    """

    def __init__(self, most: int = MOST_POINTS, interval_s: float = LOOK_S) -> None:
        self.points: list[Point] = []
        self._most = most
        self._interval_s = interval_s

    def add(self, point: Point) -> Change:
        """Add the newest point."""
        points = self.points
        # The last point stands for the running interval, until that is over.
        if len(points) > 1 and points[-1].at - points[-2].at < 0.75 * self._interval_s:
            points[-1] = point
            return "moved"
        points.append(point)
        if len(points) <= self._most:
            return "added"
        self.points = points[::2]
        self._interval_s *= 2
        return "thinned"


def point_of(snapshot: Facts) -> Point:
    """The point of a snapshot."""
    handlers = snapshot["handlers"]
    busy = {lane["kind"]: lane["busy"] for lane in snapshot["lanes"]}
    return Point(
        snapshot["at"],
        sum(each["succeeded"] for each in handlers),
        sum(each["failed"] for each in handlers),
        snapshot["pending"],
        busy.get("io", 0),
        busy.get("cpu", 0),
    )


class Watch:
    """One bus, which is asked for a snapshot again and again, until it ends.

    Args:
        place: the socket of the bus.
    """

    def __init__(self, place: BusSocket) -> None:
        self.place = place
        self.state: Liveness = "live"
        #: The reason why there is no newer snapshot.
        self.said = ""
        self.snapshot: Facts | None = None
        self.history = History()
        self._connection: LiveConnection | None = None
        #: The final snapshot, which a bus sends before it closes.
        self._last: Facts | None = None
        self._pages = 0
        self._page_came = asyncio.Event()
        #: Set once the message is replaced by a newer one, which has an event of its own.
        self._replaced = asyncio.Event()
        self._message = b""
        self._task = asyncio.create_task(self._run(), name=f"watch {place.name}")

    async def stop(self) -> None:
        """Look no more."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield the state of the bus for one page, as server-sent events, until the bus ends."""
        self._pages += 1
        self._page_came.set()
        try:
            replaced = self._replaced
            if self._message:
                yield self._event({**self._facts(), "history": self.history.points})
            while self.state != "ended":
                await replaced.wait()
                replaced = self._replaced
                yield self._message
        finally:
            self._pages -= 1

    async def renew(self) -> None:
        """Wait for a look at the bus, if the last look may be long ago."""
        if not self._pages and self.state != "ended":
            replaced = self._replaced
            self._page_came.set()
            await replaced.wait()

    async def ask(self, do: str, within_s: float = ACTION_S, **about: Any) -> Any:
        """Ask the bus, on a connection of its own.

        Args:
            do: "snapshot" or an action.
            within_s: maximum wait, in seconds.
            **about: the other fields of the request.

        Raises:
            NoAnswer: there is no answer, or the bus refuses.
        """

        def asked() -> Any:
            with LiveConnection(self.place) as connection:
                return connection.ask(do, within_s=within_s, **about)

        return await run_in_threadpool(asked)

    async def stacks(self, **about: Any) -> Any:
        """The stacks of its workers and threads, by a signal if the bus does not answer.

        Raises:
            NoAnswer: there is no answer, or the bus refuses.
        """
        try:
            return await self.ask("stacks", LIVE_ANSWER_S, **about)
        except (Declined, Gone):
            raise
        except NoAnswer:
            found = await run_in_threadpool(stacks_by_signal, self.place.pid)
            if found is None:
                raise
            return found

    async def _run(self) -> None:
        try:
            while self.state != "ended":
                self._page_came.clear()
                self._tell(await self._look())
                if self._pages:
                    await asyncio.sleep(LOOK_S)
                else:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._page_came.wait(), SELDOM_S)
        finally:
            if self._connection is not None:
                self._connection.close()

    async def _look(self) -> Change | None:
        """Ask for a snapshot; return the change of the history."""
        try:
            self.snapshot = await run_in_threadpool(self._ask_snapshot)
        except Gone as error:
            self.state, self.said = "ended", str(error)
            if self._last is not None:
                self.snapshot = self._last
                return self.history.add(point_of(self._last))
        except NoAnswer as error:
            self.state, self.said = "silent", str(error)
        except Exception as error:  # noqa: BLE001 - told on the page, and the next look may do
            self.state, self.said = "silent", f"procbus itself failed: {error!r}"
        else:
            self.state, self.said = "live", ""
            return self.history.add(point_of(self.snapshot))
        return None

    def _ask_snapshot(self) -> Facts:
        connection = self._connection
        try:
            if connection is None:
                connection = self._connection = LiveConnection(self.place)
            facts: Facts = connection.ask("snapshot")
        except NoAnswer:
            if connection is not None:
                connection.close()
                self._last = connection.last
            self._connection = None
            raise
        return facts

    def _tell(self, change: Change | None) -> None:
        facts = self._facts()
        if not self._message or change == "thinned":
            facts["history"] = self.history.points
        elif change is not None:
            facts["point"], facts["change"] = self.history.points[-1], change
        self._message = self._event(facts)
        replaced, self._replaced = self._replaced, asyncio.Event()
        replaced.set()

    def _facts(self) -> Facts:
        return {"state": self.state, "said": self.said, "snapshot": self.snapshot}

    @staticmethod
    def _event(facts: Facts) -> bytes:
        return b"data: " + json.dumps(facts, separators=(",", ":")).encode() + b"\n\n"


class Buses:
    """The buses that are shown.

    Args:
        only: the socket of the only bus to show; None for all buses of this user.
    """

    def __init__(self, only: BusSocket | None) -> None:
        self._only = only
        self._watches: dict[str, Watch] = {}

    async def start(self) -> None:
        """Begin to look, if there is a bus that is shown from the start."""
        if self._only is not None:
            self._watch(self._only)

    async def stop(self) -> None:
        """Look no more."""
        for watch in self._watches.values():
            await watch.stop()

    async def watch(self, name: str) -> Watch:
        """The bus of a name; if it has ended, the next bus of that name, if there is one.

        Raises:
            Gone: there is no such bus.
            NoAnswer: the bus cannot be reached.
            UnsafePlace: a directory for sockets belongs to someone else.
        """
        known = self._watches.get(name)
        if known is not None:
            await known.renew()
            if known.state != "ended":
                return known
        try:
            place = await run_in_threadpool(self._find, name)
        except Gone:
            if known is None:
                raise
            return known
        now = self._watches.get(name)
        return self._watch(place) if now is known or now is None else now

    async def listed(self) -> list[Facts]:
        """Name, state and a few facts of each bus, for people to choose; living buses first.

        Raises:
            UnsafePlace: a directory for sockets belongs to someone else.
        """
        places = await run_in_threadpool(self._places)
        briefs = await asyncio.gather(
            *(run_in_threadpool(_asked, place, "brief") for place in places)
        )
        found: list[Facts] = [
            {"name": place.name, "state": "silent" if brief is None else "live", **(brief or {})}
            for place, brief in zip(places, briefs, strict=True)
            if brief != {}
        ]
        there = {each["name"] for each in found}
        gone = [watch for name, watch in self._watches.items() if name not in there]
        return found + [{"name": each.place.name, "state": "ended", **_last(each)} for each in gone]

    async def metrics(self) -> dict[str, Facts]:
        """The figures of each living bus that answers, by its name.

        Raises:
            UnsafePlace: a directory for sockets belongs to someone else.
        """
        places = await run_in_threadpool(self._places)
        asked = await asyncio.gather(
            *(run_in_threadpool(_asked, place, "metrics") for place in places)
        )
        return {place.name: facts for place, facts in zip(places, asked, strict=True) if facts}

    def _places(self) -> list[BusSocket]:
        return living() if self._only is None else [self._only]

    def _find(self, name: str) -> BusSocket:
        for place in self._places():
            if place.name == name:
                LiveConnection(place).close()
                return place
        raise Gone(f"there is no bus {name} here")

    def _watch(self, place: BusSocket) -> Watch:
        ended = [name for name, watch in self._watches.items() if watch.state == "ended"]
        for name in ended[: max(0, len(ended) - MOST_ENDED)]:
            del self._watches[name]
        watch = self._watches[place.name] = Watch(place)
        return watch


def _asked(place: BusSocket, do: str) -> Facts | None:
    """The answer of a bus; an empty dict if the bus has ended, None if it does not answer."""
    try:
        with LiveConnection(place) as connection:
            facts: Facts = connection.ask(do)
    except Gone:
        return {}
    except NoAnswer:
        return None
    return facts


def _last(watch: Watch) -> Facts:
    """The few facts about a bus that has ended, from its last snapshot."""
    last = watch.snapshot
    if last is None:
        return {}
    counts = {
        name: sum(each[name] for each in last["handlers"])
        for name in ("running", "succeeded", "failed")
    }
    return {"bus": last["bus"], "pending": last["pending"], **counts}
