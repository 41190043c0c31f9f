# SPDX-License-Identifier: MIT
"""The socket of one bus, and the thread that answers on it.

Requests and replies are lines of JSON: see docs/internals/live.md.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import sleep, time
from typing import Any

from procbus.core.log import live_log as log
from procbus.core.own_thread import OwnThread
from procbus.live.actions import Actions, Refused
from procbus.live.snapshot import LIVE_PROTOCOL, Counts, Facts, Seen, Snapshots
from procbus.live.sockets import (
    BusSocket,
    UnsafePlace,
    directories,
    is_own,
    make_directory,
    place_for,
)
from procbus.live.stuck import hide_stacks, show_stacks

#: Maximum of watchers at a time, and of actions at a time of all watchers.
MOST_WATCHERS = 32
MOST_ACTIONS = 8
#: Maximum length of a request, and of replies that a watcher has not read, in bytes.
MOST_REQUEST_BYTES = 1 << 16
MOST_UNREAD_BYTES = 8 << 20
#: Maximum wait for the thread to end, in seconds.
LIVE_JOIN_S = 2.0

#: Wait after a watcher could not be let in, in seconds.
_RETRY_S = 0.1


class Watcher:
    """One connection. Used by the thread of the server alone."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.received = bytearray()
        self.to_send = bytearray()
        self.counts = Counts()

    def lines(self) -> list[bytes]:
        """Take the complete lines that were received."""
        *lines, rest = bytes(self.received).split(b"\n")
        self.received[:] = rest
        return lines


class LiveServer:
    """Lets the user's other processes look at one bus. `start` and `close` are thread-safe.

    Args:
        bus: the bus.
        journal: path of its journal; None for none.
    """

    def __init__(self, bus: Seen, journal: str | None) -> None:
        self._bus = bus
        #: Absolute, because watchers have another working directory.
        self._journal = None if journal is None else os.path.abspath(journal)
        self._since = time()
        #: Held by the thread that starts the server, or that has ended it.
        self._starting = threading.Lock()
        self.place: BusSocket | None = None
        self._thread: OwnThread | None = None
        self._begun = self._closed = False
        self._listener: socket.socket | None = None
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._watchers: set[Watcher] = set()
        #: Replies of actions, for the thread of the server to send.
        self._replies: deque[tuple[Watcher, Facts]] = deque()
        self._actions = Actions(bus)
        self._acting = 0

    # Methods for the bus.

    def start(self) -> None:
        """Listen, unless the server has already begun. A bus that cannot be watched still works."""
        if self._begun or not self._starting.acquire(blocking=False):
            return
        try:
            if self._may_begin():
                self._listen()
        except (OSError, RuntimeError) as error:  # or no thread can be started
            self._give_up()
            log.warning("the live view of this bus is off: %s", error)
        except BaseException:  # most likely Ctrl-C
            self._give_up()
            raise
        finally:
            self._starting.release()

    def close(self) -> None:
        """End the thread and remove the socket. Idempotent."""
        self._closed = True
        thread = self._thread
        self._ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join(LIVE_JOIN_S)
            if thread.is_alive():  # no client finds the bus any more; the thread ends when it can
                self._hide()

    def disown(self) -> None:
        """Let go of the sockets in a forked child: they end with the parent. Takes no lock."""
        self._closed = True
        self.place = None
        self._let_go()

    # Starting.

    def _may_begin(self) -> bool:
        begun, self._begun = self._begun, True
        return not begun and not self._closed

    def _listen(self) -> None:
        if not hasattr(socket, "AF_UNIX"):
            raise UnsafePlace("Python offers no Unix sockets on this system")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener = listener
        listener.setblocking(False)
        self.place = _bind(listener)
        self._bell = socket.socketpair()
        for end in self._bell:
            end.setblocking(False)
        # Here, because C code may hold the GIL before the new thread has it for the first time.
        show_stacks(self)
        thread = OwnThread("procbus-live", self._run, self.place.number)
        thread.start()
        self._thread = thread

    def _give_up(self) -> None:
        self._closed = True
        self._let_go()
        hide_stacks(self)

    def _let_go(self) -> None:
        for watcher in tuple(self._watchers):
            watcher.socket.close()
        self._watchers.clear()
        for each in (self._listener, *(self._bell or ())):
            if each is not None:
                each.close()
        self._listener = self._bell = None
        self._hide()

    def _hide(self) -> None:
        # Only once: another bus may have the same name soon after.
        place, self.place = self.place, None
        if place is not None:
            _remove(place.path)

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            with suppress(OSError):  # the bell is closed, or full: then the thread wakes up anyway
                bell[1].send(b"!")

    # The thread.

    def _run(self, number: int) -> None:
        snapshots = Snapshots(self._bus, number, self._since, self._journal)
        listener, bell = self._listener, self._bell
        assert listener is not None
        assert bell is not None
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(bell[0], selectors.EVENT_READ)
            while not self._closed:
                for key, mask in selector.select():
                    if key.fileobj is listener:
                        self._accept(listener, selector)
                    elif key.fileobj is bell[0]:
                        with suppress(OSError):
                            bell[0].recv(4096)
                    else:
                        self._serve(key.data, mask, selector, snapshots)
                self._send_replies(selector)
        self._send_last(snapshots)
        self._give_up()

    def _send_last(self, snapshots: Snapshots) -> None:
        """Send the final state of the bus to each watcher that has asked for snapshots."""
        for watcher in self._watchers:
            if not watcher.counts.taken:
                continue
            try:
                last = {"result": snapshots.take(watcher.counts), "last": True}
                line = _line({"protocol": LIVE_PROTOCOL, "id": None, "ok": True, **last})
                watcher.socket.send(watcher.to_send + line)
            except OSError:  # the watcher has gone, or has no room, and keeps an older snapshot
                continue
            except Exception:  # noqa: BLE001 - the bus must come to its end
                log.exception("procbus itself failed in its live view, which ends")

    def _accept(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:  # the watcher has gone already
            return
        except OSError:  # the process has too many open files, and maybe fewer soon
            sleep(_RETRY_S)
            return
        if len(self._watchers) >= MOST_WATCHERS or not is_own(sock):
            sock.close()
            return
        sock.setblocking(False)
        watcher = Watcher(sock)
        self._watchers.add(watcher)
        selector.register(sock, selectors.EVENT_READ, watcher)

    def _serve(
        self, watcher: Watcher, mask: int, selector: selectors.BaseSelector, snapshots: Snapshots
    ) -> None:
        if watcher not in self._watchers:
            return
        try:
            if mask & selectors.EVENT_READ:
                data = watcher.socket.recv(MOST_REQUEST_BYTES)
                watcher.received += data
                if not data or len(watcher.received) > MOST_REQUEST_BYTES:
                    self._drop(watcher, selector)
                    return
                for line in watcher.lines():
                    reply = self._answer(watcher, line, snapshots)
                    if reply is not None:
                        watcher.to_send += _line(reply)
            self._flush(watcher, selector)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(watcher, selector)

    def _flush(self, watcher: Watcher, selector: selectors.BaseSelector) -> None:
        if watcher.to_send:
            with suppress(BlockingIOError):
                sent = watcher.socket.send(watcher.to_send)
                del watcher.to_send[:sent]
        if len(watcher.to_send) > MOST_UNREAD_BYTES:
            self._drop(watcher, selector)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if watcher.to_send else 0)
        selector.modify(watcher.socket, events, watcher)

    def _drop(self, watcher: Watcher, selector: selectors.BaseSelector) -> None:
        if watcher in self._watchers:
            self._watchers.discard(watcher)
            selector.unregister(watcher.socket)
            watcher.socket.close()

    def _answer(self, watcher: Watcher, line: bytes, snapshots: Snapshots) -> Facts | None:
        """Answer a request; None if an action will answer it later."""
        about: Facts = {"protocol": LIVE_PROTOCOL, "id": None}
        try:
            request = _request(line)
            about["id"] = request.get("id")
            asked = request.get("do")
            if asked == "snapshot":
                return {**about, "ok": True, "result": snapshots.take(watcher.counts)}
            if asked == "brief":
                return {**about, "ok": True, "result": snapshots.brief()}
            if asked == "metrics":
                return {**about, "ok": True, "result": snapshots.metrics()}
            self._begin(watcher, self._actions.prepare(request), about)
        except Refused as error:
            return {**about, "ok": False, "error": str(error)}
        except Exception as error:  # noqa: BLE001 - the thread must go on, for other watchers
            log.exception("procbus itself failed in its live view, which goes on")
            return {**about, "ok": False, "error": f"procbus itself failed: {error!r}"}
        return None

    def _begin(self, watcher: Watcher, act: Callable[[], Any], about: Facts) -> None:
        """Run an action in a new thread, because an action may wait, or run the user's code."""
        if self._acting >= MOST_ACTIONS:
            raise Refused(f"{self._acting} actions are under way already: wait for them")
        self._acting += 1
        try:
            OwnThread("procbus-live-action", self._act, watcher, act, about).start()
        except RuntimeError as error:  # the interpreter is ending
            self._acting -= 1
            raise Refused(f"no thread can be started: {error}") from error

    def _act(self, watcher: Watcher, act: Callable[[], Any], about: Facts) -> None:
        try:
            reply = {**about, "ok": True, "result": act()}
        except Refused as error:
            reply = {**about, "ok": False, "error": str(error)}
        except BaseException as error:  # noqa: BLE001 - told to the user who asked for the action
            reply = {**about, "ok": False, "error": self._actions.words(error)}
        self._replies.append((watcher, reply))
        self._ring()

    def _send_replies(self, selector: selectors.BaseSelector) -> None:
        while self._replies:
            watcher, reply = self._replies.popleft()
            self._acting -= 1
            if watcher in self._watchers:
                watcher.to_send += _line(reply)
                try:
                    self._flush(watcher, selector)
                except OSError:
                    self._drop(watcher, selector)


def _bind(listener: socket.socket) -> BusSocket:
    """Listen on a new socket in the first directory that can be used.

    Raises:
        OSError: no directory can be used; the message has the reason for each.
    """
    reasons = []
    for directory in directories():
        try:
            make_directory(directory)
            return _bind_in(directory, listener)
        except OSError as error:
            reasons.append(f"{error}")
    raise UnsafePlace("; ".join(reasons))


def _bind_in(directory: str, listener: socket.socket) -> BusSocket:
    """Listen on a new socket in a directory, with the next free number of this process."""
    place = place_for(directory, os.getpid(), 1)
    # Under a hidden name until it listens: `procbus ps` removes sockets that do not listen.
    hidden = os.path.join(directory, f".{os.urandom(4).hex()}")
    listener.bind(hidden)
    try:
        os.chmod(hidden, 0o600)
        listener.listen(4 * MOST_WATCHERS)
        while True:
            try:
                os.link(hidden, place.path)
            except FileExistsError:
                place = place_for(directory, place.pid, place.number + 1)
            else:
                return place
    finally:
        _remove(hidden)


def _request(line: bytes) -> Facts:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Refused(f"this is no line of JSON: {error}") from None
    if not isinstance(request, dict):
        raise Refused('a request is an object, such as {"protocol": 1, "do": "snapshot"}')
    if type(request.get("id", 0)) not in (int, str):
        raise Refused("the id of a request is a number or a string")
    if request.get("protocol") != LIVE_PROTOCOL:
        raise Refused(
            f"this bus speaks protocol {LIVE_PROTOCOL}, and was asked in "
            f"{request.get('protocol')!r}: use the same version of procbus on both sides"
        )
    return request


def _line(reply: Facts) -> bytes:
    # ASCII alone, so that a lone surrogate in a name does no harm.
    return json.dumps(reply, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
