# SPDX-License-Identifier: MIT
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, subscribe
from procbus.live.metrics import CONTENT_TYPE
from tests.unit.web.conftest import Serve
from tests.waits import BOUND_S, eventually

NAME = str(os.getpid())


class Held:
    """A bus with handlers that wait until the test lets them go."""

    def __init__(self, journal: Path | None = None) -> None:
        self.go = threading.Event()
        self.ran: list[Any] = []

        @subscribe("held", name="held")
        def held(event: Any) -> None:
            assert self.go.wait(BOUND_S)

        @subscribe("bad", name="bad")
        def bad(event: Any) -> None:
            self.ran.append(event)
            raise ValueError("no <b>good</b>")

        self.bus = EventBus([held, bad], live=True, journal=journal, on_failure=lambda _: None)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    with made.bus:
        yield made
        made.go.set()


@contextmanager
def stream(client: Any, name: str = NAME) -> Iterator[Iterator[Any]]:
    """The server-sent events of a bus, as they come."""
    with client.stream("GET", f"/api/buses/{name}/events") as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line)
        yield (json.loads(line.removeprefix("data: ")) for line in lines)


def act(client: Any, path: str, **body: Any) -> Any:
    return client.post(path, json=body, headers={"Authorization": f"Bearer {client.token}"})


def test_the_page_needs_nothing_but_itself(serve: Serve) -> None:
    page = serve().get("/").text

    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page
    assert "innerHTML" not in page
    assert "@import" not in page


def test_a_server_without_a_bus_is_healthy_and_not_ready(serve: Serve) -> None:
    client = serve()

    assert client.get("/healthz").text == "ok\n"
    ready = client.get("/readyz")
    assert (ready.status_code, ready.text) == (503, "there is no bus\n")
    assert client.get("/api/buses").json() == {"buses": [], "journal": None}
    missing = client.get("/api/buses/1/events")
    assert missing.status_code == 404
    assert "there is no bus 1" in missing.json()["error"]


def test_a_bus_is_listed_and_shown_as_json(serve: Serve, held: Held) -> None:
    held.bus.publish("bad", "a.png").wait()
    held.bus.publish("held", 1)
    client = serve()

    assert client.get("/readyz").text == "ok\n"
    (bus,) = client.get("/api/buses").json()["buses"]
    assert (bus["name"], bus["state"], bus["failed"]) == (NAME, "live", 1)
    snapshot = client.get(f"/api/buses/{NAME}").json()
    assert snapshot["bus"]["pid"] == os.getpid()
    assert snapshot["dead_letters"][0]["error"] == "ValueError: no <b>good</b>"


def test_a_page_gets_the_history_and_then_each_change(serve: Serve, held: Held) -> None:
    client = serve(NAME)
    with stream(client) as messages:
        first = next(messages)
        assert first["state"] == "live"
        assert len(first["history"]) >= 1
        held.bus.publish("bad", 1).wait()
        after = next(each for each in messages if each["snapshot"]["handlers"][0]["failed"])
        assert after["change"] in ("added", "moved")
        assert after["point"][2] == 1
    with stream(client) as messages:  # a page that comes later has all of it too
        assert next(messages)["history"][-1][2] == 1


def test_a_bus_that_ends_leaves_its_last_picture(serve: Serve, held: Held) -> None:
    client = serve(NAME)
    held.bus.publish("bad", 1).wait()
    with stream(client) as messages:
        assert next(messages)["state"] == "live"
        held.bus.close()
        last = list(messages)[-1]
    assert last["state"] == "ended"
    assert last["said"]
    assert last["snapshot"]["bus"]["pid"] == os.getpid()
    assert last["point"] is not None

    with stream(client) as messages:  # for a page that comes too late
        assert [each["state"] for each in messages] == ["ended"]
    assert client.get(f"/api/buses/{NAME}").status_code == 410
    ready = client.get("/readyz")
    assert (ready.status_code, ready.text) == (503, "ended\n")
    (bus,) = client.get("/api/buses").json()["buses"]
    assert bus["state"] == "ended"
    assert act(client, f"/api/buses/{NAME}/actions/pause", kind="io").status_code == 404


def test_the_last_picture_has_the_last_delivery(serve: Serve, held: Held) -> None:
    client = serve(NAME)
    held.bus.publish("held", 1)
    with stream(client) as messages:
        assert next(messages)["snapshot"]["pending"] == 1
        held.go.set()
        held.bus.close()
        last = list(messages)[-1]["snapshot"]
    assert last["pending"] == 0
    assert [each["succeeded"] for each in last["handlers"] if each["name"] == "held"] == [1]


def test_the_metrics_of_all_buses_are_there_for_prometheus(serve: Serve, held: Held) -> None:
    held.bus.publish("bad", 1).wait()
    client = serve()
    metrics = client.get("/metrics")

    assert metrics.headers["content-type"] == CONTENT_TYPE
    failed = f'procbus_deliveries_total{{bus="{NAME}",handler="bad",kind="io",outcome="failed"}} 1'
    assert failed in metrics.text.splitlines()
    held.bus.close()
    assert "handler=" not in client.get("/metrics").text


def test_the_next_bus_of_a_process_takes_the_place_of_one_that_ended(serve: Serve) -> None:
    client = serve()
    with EventBus([], live=True), stream(client) as messages:
        since = next(messages)["snapshot"]["bus"]["since"]
    eventually(lambda: client.get("/readyz").text == "ended\n")
    with EventBus([], live=True), stream(client) as messages:
        again = next(messages)
        assert again["state"] == "live"
        assert again["snapshot"]["bus"]["since"] > since


def test_a_bus_acts_for_the_holder_of_the_token(serve: Serve, held: Held) -> None:
    held.bus.publish("bad", "a.png").wait()
    client = serve()
    actions = f"/api/buses/{NAME}/actions"
    (letter,) = client.get(f"/api/buses/{NAME}").json()["dead_letters"]

    assert act(client, f"{actions}/pause", kind="io").json() == {"kind": "io"}
    assert act(client, f"{actions}/replay", letter=letter["key"]).json()["handler"] == "bad"
    assert held.ran == ["a.png"]
    assert act(client, f"{actions}/resume", kind="io").json() == {"kind": "io"}
    eventually(lambda: held.ran == ["a.png", "a.png"])
    threads = act(client, f"{actions}/stacks").json()["threads"]
    assert any("eventually" in each["stack"] or each["main"] for each in threads)

    for action, body, status, words in (
        ("replay", {"letter": "1/2/bad"}, 409, "not there any more"),
        ("cancel", {"worker": "x", "event_id": 1}, 409, "not at event #1"),
        ("pause", {"kind": "tea", "do": "resume", "within_s": 0}, 409, "kind must be"),
        ("juggle", {}, 404, "there is no action"),
    ):
        refused = act(client, f"{actions}/{action}", **body)
        assert refused.status_code == status, refused.text
        assert words in refused.json()["error"]


@pytest.mark.parametrize("body", [b"[1]", b"{", b"[" * 10_000, b" " * 20_000])
def test_a_body_that_is_no_request_is_refused(serve: Serve, body: bytes) -> None:
    client = serve()
    headers = {"Authorization": f"Bearer {client.token}"}

    refused = client.post("/api/buses/1/actions/pause", content=body, headers=headers)
    assert refused.status_code in (400, 413)


def test_a_journal_is_shown_while_a_bus_has_it_and_after(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    made = Held(path)
    with made.bus:
        made.bus.publish("bad", "a.png").wait()
        client = serve(journal=str(path))
        facts = client.get(f"/api/journal?bus={NAME}").json()
        # The server runs in the process of the bus here, which alone may not visit it.
        assert "error" in facts
    eventually(lambda: "handlers" in client.get("/api/journal").json())

    facts = client.get("/api/journal").json()
    assert facts["owner"] is None
    assert facts["totals"]["dead"] == 1
    (letter,) = facts["dead_letters"]
    assert letter["handler"] == "bad"
    assert "no <b>good</b>" in letter["error"]
    assert act(client, "/api/journal/retry", id="7:bad").status_code == 409
    assert client.post("/api/journal/retry", json={"id": letter["id"]}).status_code == 401
    assert act(client, "/api/journal/retry", id=letter["id"]).json() == {
        "id": letter["id"],
        "by": None,
    }
    assert client.get("/api/journal").json()["totals"] == {
        **facts["totals"],
        "dead": 0,
        "pending": 1,
    }
    again = Held(path)
    with again.bus:
        pass
    assert again.ran == ["a.png"]


def test_a_journal_that_was_not_given_is_not_there(serve: Serve) -> None:
    assert serve().get("/api/journal").status_code == 404
