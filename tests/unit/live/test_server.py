# SPDX-License-Identifier: MIT
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, subscribe
from procbus.live.client import Declined, Gone, LiveConnection, bus_named, living
from procbus.live.metrics import exposition, families
from procbus.live.server import MOST_REQUEST_BYTES, MOST_WATCHERS
from procbus.live.snapshot import LETTERS_SHOWN
from procbus.live.sockets import BusSocket
from tests.waits import BOUND_S, eventually


class Held:
    """A bus with handlers that wait until the test lets them go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.ran: list[Any] = []

        @subscribe("held", name="held")
        def held(event: Any) -> None:
            assert self.go.wait(BOUND_S)
            self.ran.append(event)

        @subscribe("bad", name="bad")
        def bad(event: Any) -> None:
            self.ran.append(event)
            raise ValueError("no good")

        self.bus = EventBus([held, bad], live=True)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    with made.bus:
        yield made
        made.go.set()


@pytest.fixture
def watcher(held: Held) -> Iterator[LiveConnection]:
    with LiveConnection(bus_named(str(os.getpid()))) as connection:
        yield connection


def raw(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(BOUND_S)
    sock.connect(path)
    return sock


def test_a_bus_listens_from_its_block_to_its_end(sockets: Path) -> None:
    with EventBus([], live=True) as bus:
        (place,) = living()
        assert place.pid == os.getpid()
        assert sockets.stat().st_mode & 0o777 == 0o700
        assert os.stat(place.path).st_mode & 0o777 == 0o600
        bus.close()
        assert living() == []
        assert list(sockets.iterdir()) == []
    assert not [each for each in threading.enumerate() if each.name == "procbus-live"]


def test_without_the_option_nothing_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0"):
        monkeypatch.setenv("PROCBUS_LIVE", value)
        with EventBus([]) as bus:
            bus.publish("nothing", 1)
            assert living() == []


def test_the_environment_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCBUS_LIVE", "1")
    with EventBus([]), EventBus([]):
        assert [place.name for place in living()] == [f"{os.getpid()}", f"{os.getpid()}-2"]
        with pytest.raises(Gone, match="there are 2 buses, name one of them"):
            bus_named(None)
        assert bus_named(f"{os.getpid()}-2").number == 2


def test_the_first_event_is_enough(sockets: Path) -> None:
    bus = EventBus([], live=True)
    assert living() == []
    bus.publish("nothing", 1)
    assert len(living()) == 1
    bus.close()
    assert living() == []


def test_a_bus_that_cannot_be_watched_works(
    sockets: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    sockets.mkdir(0o700)
    (sockets.parent / "procbus-4711").mkdir(0o755)
    with EventBus([], live=True) as bus:
        assert bus.publish("nothing", 1).done
    (text,) = [record.getMessage() for record in caplog.records if "live view" in record.msg]
    assert "the live view of this bus is off" in text
    assert "you are user 4711" in text


def test_a_snapshot_tells_the_state_of_the_bus(held: Held, watcher: LiveConnection) -> None:
    held.bus.publish("bad", {"page": 7}).wait(BOUND_S)
    held.bus.publish("held", 1)
    eventually(lambda: held.bus.stats().handlers["held"].running)

    snapshot = watcher.ask("snapshot")

    assert snapshot["bus"]["pid"] == os.getpid()
    assert snapshot["bus"]["state"] == "open"
    assert snapshot["pending"] == 1
    lanes = {lane["kind"]: lane for lane in snapshot["lanes"]}
    assert (lanes["io"]["busy"], lanes["cpu"]["workers"]) == (1, 0)
    handlers = {each["name"]: each for each in snapshot["handlers"]}
    assert (handlers["bad"]["failed"], handlers["held"]["running"]) == (1, 1)
    assert handlers["bad"]["rate"] is None
    assert [each["handler"] for each in snapshot["workers"] if each["handler"]] == ["held"]
    (letter,) = snapshot["dead_letters"]
    assert (letter["event"], letter["error"]) == ("{'page': 7}", "ValueError: no good")
    assert snapshot["advice"] == []
    assert watcher.ask("brief")["running"] == 1
    held.go.set()
    held.bus.drain(BOUND_S)
    rates = {each["name"]: each["rate"] for each in watcher.ask("snapshot")["handlers"]}
    assert rates["held"] > 0
    assert rates["bad"] == 0


def test_metrics_tell_the_figures_of_the_bus(held: Held, watcher: LiveConnection) -> None:
    held.bus.publish("bad", 1).wait(BOUND_S)

    text = exposition(families({"b": watcher.ask("metrics")}))

    failed = 'procbus_deliveries_total{bus="b",handler="bad",kind="io",outcome="failed"} 1'
    assert failed in text.splitlines()


def test_dead_letters_are_bounded_and_not_counted_as_seen(
    held: Held, watcher: LiveConnection
) -> None:
    for number in range(LETTERS_SHOWN + 10):
        held.bus.publish("bad", number)
    held.bus.drain(BOUND_S)

    snapshot = watcher.ask("snapshot")

    assert len(snapshot["dead_letters"]) == LETTERS_SHOWN
    assert snapshot["dead_letters_kept"] == LETTERS_SHOWN + 10
    assert {each["event"] for each in snapshot["dead_letters"]} <= {str(n) for n in range(100)}


def test_a_dead_letter_is_replayed_once(held: Held, watcher: LiveConnection) -> None:
    held.bus.publish("bad", "again").wait(BOUND_S)
    (letter,) = watcher.ask("snapshot")["dead_letters"]

    replayed = watcher.ask("replay", letter=letter["key"])

    assert replayed["handler"] == "bad"
    held.bus.drain(BOUND_S)
    assert held.ran == ["again", "again"]
    with pytest.raises(Declined, match="not there any more"):
        watcher.ask("replay", letter=letter["key"])


def test_a_paused_lane_begins_nothing_until_it_is_resumed(
    held: Held, watcher: LiveConnection
) -> None:
    held.go.set()
    assert watcher.ask("pause", kind="io") == {"kind": "io"}
    receipts = [held.bus.publish("held", number) for number in range(3)]
    lanes = {lane["kind"]: lane for lane in watcher.ask("snapshot")["lanes"]}
    assert (lanes["io"]["queued"], lanes["io"]["paused"]) == (3, "paused by hand")
    assert not any(receipt.done for receipt in receipts)

    watcher.ask("resume", kind="io")

    assert all(receipt.wait(BOUND_S) for receipt in receipts)
    assert sorted(held.ran) == [0, 1, 2]


def test_closing_with_a_limit_cancels_the_deliveries_of_a_paused_lane(
    held: Held, watcher: LiveConnection, caplog: pytest.LogCaptureFixture
) -> None:
    watcher.ask("pause", kind="io")
    receipt = held.bus.publish("held", 1)

    held.bus.close(timeout=0)

    assert receipt.deliveries[0].state.value == "cancelled"
    assert "waits for its io lane, which is paused by hand" in caplog.text


def test_stacks_show_handlers_and_the_main_thread(held: Held, watcher: LiveConnection) -> None:
    held.bus.publish("held", 1)
    eventually(lambda: held.bus.stats().handlers["held"].running)

    stacks = watcher.ask("stacks")

    names = [thread["name"] for thread in stacks["threads"]]
    assert names[0] == threading.main_thread().name
    (stack,) = [each["stack"] for each in stacks["threads"] if "in held" in each["stack"]]
    assert "self.go.wait(BOUND_S)" in stack
    (one,) = watcher.ask("stacks", worker="procbus-io-1")["threads"]
    assert one["stack"] == stack
    with pytest.raises(Declined, match="there is no worker 'nobody'"):
        watcher.ask("stacks", worker="nobody")


def test_a_thread_is_not_cancelled(held: Held, watcher: LiveConnection) -> None:
    receipt = held.bus.publish("held", 1)
    eventually(lambda: held.bus.stats().handlers["held"].running)

    with pytest.raises(Declined, match="Python cannot stop a thread"):
        watcher.ask("cancel", worker="procbus-io-1", event_id=receipt.id)
    with pytest.raises(Declined, match="not at event #99 any more"):
        watcher.ask("cancel", worker="procbus-companion-1", event_id=99)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (b"nonsense", "no line of JSON"),
        (b"[" * 50_000, "no line of JSON"),
        (b"[]", "a request is an object"),
        (b"{}", "speaks protocol 1, and was asked in None"),
        (b'{"protocol": 2, "do": "snapshot"}', "asked in 2"),
        (b'{"protocol": 1, "id": NaN}', "a number or a string"),
        (b'{"protocol": 1, "id": [], "do": "brief"}', "a number or a string"),
        (b'{"protocol": 1}', "there is no action None"),
        (b'{"protocol": 1, "do": ["x"]}', "there is no action"),
        (b'{"protocol": 1, "do": "pause", "kind": "gpu"}', 'kind must be "io" or "cpu"'),
        (b'{"protocol": 1, "do": "pause", "kind": "cpu"}', "there is no cpu lane yet"),
        (b'{"protocol": 1, "do": "replay", "letter": 7}', "not there any more"),
    ],
)
def test_a_bad_request_is_refused_with_a_reason(
    held: Held, watcher: LiveConnection, request_: bytes, words: str
) -> None:
    with raw(watcher.place.path) as sock, sock.makefile("rb") as replies:
        sock.sendall(request_ + b"\n")
        reply = json.loads(replies.readline())
        assert reply["ok"] is False
        assert words in reply["error"]
        sock.sendall(b'{"protocol": 1, "id": "a", "do": "brief"}\n')
        assert json.loads(replies.readline())["ok"] is True


def test_a_request_without_an_end_is_hung_up_on(watcher: LiveConnection) -> None:
    with raw(watcher.place.path) as sock, suppress(ConnectionError):
        sock.sendall(b"x" * (MOST_REQUEST_BYTES + 2))
        assert sock.recv(1) == b""
    assert watcher.ask("brief")


def test_too_many_watchers_are_hung_up_on(watcher: LiveConnection) -> None:
    socks = [raw(watcher.place.path) for _ in range(MOST_WATCHERS)]
    with suppress(ConnectionError):
        assert socks[-1].recv(1) == b""
    assert watcher.ask("brief")
    for sock in socks:
        sock.close()
    eventually(lambda: lets_in(watcher.place))


def lets_in(place: BusSocket) -> bool:
    with suppress(Gone), LiveConnection(place) as connection:
        return bool(connection.ask("brief"))
    return False


def test_a_watcher_that_has_gone_harms_nobody(held: Held, watcher: LiveConnection) -> None:
    for _ in range(20):
        sock = raw(watcher.place.path)
        sock.sendall(b'{"protocol": 1, "do": "stacks"}\n{"protocol": 1, "do": "snapshot"}\n')
        sock.close()
    assert watcher.ask("snapshot")["protocol"] == 1
    assert watcher.ask("stacks")["threads"]


def test_a_socket_left_by_a_killed_process_is_removed(sockets: Path) -> None:
    sockets.mkdir(0o700)
    left = sockets / "4711-1.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(left))

    assert living() == []
    assert not left.exists()
