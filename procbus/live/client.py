# SPDX-License-Identifier: MIT
"""The client of the live view: finds the buses of this user, asks them, and has them act."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, Self

from procbus.live.snapshot import LIVE_PROTOCOL, Facts
from procbus.live.sockets import BusSocket, is_own, places

#: Maximum wait for an answer, in seconds; because a busy machine may have no core for the script.
LIVE_ANSWER_S = 5.0
#: Maximum length of an answer, in bytes.
MOST_ANSWER_BYTES = 64 << 20
#: Interval between two attempts to connect, in seconds.
_IN_LINE_S = 0.01

#: The message if no bus of this user can be watched.
NO_BUS = (
    "there is no bus that can be watched: make it with EventBus(live=True), or start your script "
    "with PROCBUS_LIVE=1"
)


class NoAnswer(Exception):
    """A bus does not answer; the message says why."""


class Gone(NoAnswer):
    """There is no such bus, or it has ended."""


class Declined(NoAnswer):
    """The bus refuses a request; the message comes from the bus."""


class LiveConnection:
    """A connection to one bus. Not thread-safe.

    Args:
        place: the socket of the bus.

    Raises:
        Gone: the process of the bus has ended.
        NoAnswer: the socket belongs to someone else.
    """

    def __init__(self, place: BusSocket) -> None:
        self.place = place
        self._number = 0
        self._received = bytearray()
        #: The final snapshot of a bus that has closed after a snapshot for this connection.
        self.last: Facts | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(LIVE_ANSWER_S)
        try:
            self._connect(monotonic() + LIVE_ANSWER_S)
        except (ConnectionRefusedError, FileNotFoundError):
            self._socket.close()
            raise Gone(f"process {place.pid} has ended") from None
        except OSError as error:
            self._socket.close()
            raise NoAnswer(f"process {place.pid} cannot be asked: {error}") from error
        if not is_own(self._socket):
            self._socket.close()
            raise NoAnswer(f"{place.path} belongs to another user")

    def _connect(self, deadline: float) -> None:
        while True:
            try:
                return self._socket.connect(self.place.path)
            except BlockingIOError:  # others wait in line to be let in
                if monotonic() > deadline:
                    raise
            sleep(_IN_LINE_S)

    def ask(self, do: str, *, within_s: float = LIVE_ANSWER_S, **about: Any) -> Any:
        """Ask for a snapshot or an action, and wait for the result.

        Args:
            do: "snapshot", "brief", "metrics" or an action.
            within_s: maximum wait, in seconds.
            **about: the other fields of the request.

        Raises:
            Declined: the bus refuses, with a reason.
            Gone: the bus has ended.
            NoAnswer: there was no answer in time. Then close the connection.
        """
        self._number += 1
        request = {"protocol": LIVE_PROTOCOL, "id": self._number, "do": do, **about}
        deadline = monotonic() + within_s
        try:
            self._socket.settimeout(within_s)
            with suppress(BrokenPipeError):  # a bus that has closed has left its final snapshot
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            for line in self._lines(deadline):
                reply = json.loads(line)
                if reply.get("last"):
                    self.last = reply["result"]
                if reply.get("id") == self._number:
                    return _result(reply)
        except TimeoutError:
            raise NoAnswer(
                f"process {self.place.pid} did not answer within {within_s:g} s"
            ) from None
        except (ConnectionError, ValueError) as error:
            raise Gone(f"process {self.place.pid} has hung up: {error}") from None
        raise Gone(f"the bus of process {self.place.pid} is closed")

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        """Use the connection for the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the connection."""
        self.close()

    def _lines(self, deadline: float) -> Iterator[bytes]:
        while True:
            while (end := self._received.find(b"\n")) >= 0:
                line = bytes(self._received[:end])
                del self._received[: end + 1]
                yield line
            left_s = deadline - monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            data = self._socket.recv(1 << 18)
            if not data:
                return
            self._received += data
            if len(self._received) > MOST_ANSWER_BYTES:
                raise ValueError("its answer has no end")


def _result(reply: Facts) -> Any:
    if not reply.get("ok"):
        raise Declined(str(reply.get("error")))
    return reply["result"]


def living() -> list[BusSocket]:
    """The living buses of this user, by process id. Sockets of dead buses are removed.

    Raises:
        UnsafePlace: a directory for sockets belongs to someone else.
    """
    found = []
    for place in places():
        try:
            LiveConnection(place).close()
        except Gone:
            with suppress(OSError):
                os.unlink(place.path)
        except NoAnswer:
            continue
        else:
            found.append(place)
    return found


def bus_named(name: str | None) -> BusSocket:
    """Find the bus that a user means.

    Args:
        name: a process id, or a process id and number such as "4711-2"; None for the only bus.

    Raises:
        Gone: there is no such bus, or several buses match; the message names the buses.
        UnsafePlace: a directory for sockets belongs to someone else.
    """
    there = living()
    meant = [place for place in there if name in (None, place.name)]
    meant = meant or [place for place in there if str(place.pid) == name]
    if len(meant) == 1:
        return meant[0]
    if meant:
        names = ", ".join(place.name for place in meant)
        raise Gone(f"there are {len(meant)} buses, name one of them: {names}")
    if name is not None:
        raise Gone(f"there is no bus {name} that can be watched (see: procbus ps)")
    raise Gone(NO_BUS)
