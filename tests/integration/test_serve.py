# SPDX-License-Identifier: MIT
"""`procbus serve` in a process of its own, and its page in a browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procbus.core.gil import gil_is_on
from tests.integration.live_stage import Stage
from tests.waits import BOUND_S, eventually

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")


class Served:
    """The command, and a client with its address."""

    def __init__(self, stage: Stage, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "procbus", "serve", "--port", "0", *arguments],
            env=stage.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"procbus serve: (http://127\.0\.0\.1:(\d+)/#token=(\S+))\n", line)
        assert found, (line, self.process.communicate())
        self.address, self.port, self.token = found[1], int(found[2]), found[3]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=BOUND_S)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End it by a signal; return its exit status, and its words on stderr."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=BOUND_S)
        return self.process.returncode, said


Serve = Callable[..., Served]


@pytest.fixture
def serve(stage: Stage) -> Iterator[Serve]:
    started: list[Served] = []

    def start(*arguments: str) -> Served:
        started.append(Served(stage, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.end(signal.SIGKILL)


def test_a_script_is_served_until_it_is_killed(stage: Stage, serve: Serve) -> None:
    run = stage.start()
    served = serve(str(run.pid))
    client = served.client

    assert client.get("/readyz").text == "ok\n"
    snapshot = client.get(f"/api/buses/{run.pid}").json()
    assert snapshot["bus"]["script"] == str(stage.folder / "script.py")
    assert snapshot["workers"]
    run.kill()
    run.wait(BOUND_S)

    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
    assert served.process.poll() is None


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_the_server_beside_a_page_that_looks(
    stage: Stage, serve: Serve, number: int, status: int
) -> None:
    run = stage.start()
    served = serve()
    with served.client.stream("GET", f"/api/buses/{run.pid}/events") as answer:
        assert next(answer.iter_lines()).startswith("data: ")
        served.process.send_signal(number)
        assert served.process.wait(BOUND_S) == status
    assert served.end(signal.SIGKILL) == (status, "")
    assert run.poll() is None


def test_a_journal_is_served_beside_its_bus_and_without_one(stage: Stage, serve: Serve) -> None:
    run = stage.start(
        """
        import time
        from procbus import EventBus, subscribe

        @subscribe("bad", name="bad", kind="cpu")
        def bad(event):
            raise ValueError("no good")

        @subscribe("held", name="held", kind="cpu")
        def held(event):
            open("ready", "w").close()
            time.sleep(3_600)

        if __name__ == "__main__":
            with EventBus(cpu_workers=1, journal="run.db", on_failure=lambda _: None) as bus:
                bus.publish("bad", 1).wait()
                bus.publish("held", 2).wait()
        """
    )
    served = serve("--journal", str(stage.folder / "run.db"))

    def journal() -> Any:
        return served.client.get("/api/journal").json()

    # The last second may not show yet.
    eventually(lambda: journal().get("totals", {}).get("dead") == 1)
    assert journal()["owner"] == run.pid
    assert served.client.get("/api/journal", params={"bus": run.pid}).json()["owner"] == run.pid
    run.kill()
    run.wait(BOUND_S)

    eventually(lambda: journal().get("owner", 0) is None)
    assert journal()["totals"]["pending"] == 1
    (letter,) = journal()["dead_letters"]
    assert (letter["handler"], letter["error"]) == ("bad", "ValueError: no good")
    again = served.client.post(
        "/api/journal/retry",
        json={"id": letter["id"]},
        headers={"Authorization": f"Bearer {served.token}"},
    )
    assert again.json() == {"id": letter["id"], "by": None}
    assert stage.procbus("journal", "list", str(stage.folder / "run.db")).stdout.count("pending")


def test_a_server_that_cannot_be_is_told_why(stage: Stage, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = stage.procbus("serve", "--port", port)
    assert refused.returncode == 2
    assert f"port {port} cannot be used" in refused.stderr
    unknown = stage.procbus("serve", "1", "--port", "0")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "there is no bus 1" in unknown.stderr
    missing = stage.procbus("serve", "--journal", str(tmp_path / "none.db"), "--port", "0")
    assert missing.returncode == 2
    assert "there is no journal" in missing.stderr


def test_a_missing_library_is_named_with_its_extra(stage: Stage) -> None:
    script = (
        "import sys; sys.modules['uvicorn'] = None; from procbus.cli.main import main; "
        "sys.exit(main(['serve', '--port', '0']))"
    )
    refused = subprocess.run(
        [sys.executable, "-c", script],
        env=stage.env,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )

    assert refused.returncode == 2
    assert "uvicorn" in refused.stderr
    assert "pip install 'procbus[live]'" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
@pytest.mark.skipif(not gil_is_on(), reason="without a GIL the script answers")
def test_a_script_whose_gil_is_held_shows_its_stacks(stage: Stage, serve: Serve) -> None:
    run = stage.start(
        """
        import re
        from procbus import EventBus

        def hang():
            open("ready", "w").close()
            re.match("(a+)+$", "a" * 64 + "b")  # it holds the GIL, for ages

        with EventBus([]) as bus:
            hang()
        """
    )
    served = serve(str(run.pid))
    stacks = served.client.post(
        f"/api/buses/{run.pid}/actions/stacks", headers={"Authorization": f"Bearer {served.token}"}
    )

    assert stacks.status_code == 200, stacks.text
    assert "in hang" in stacks.text
    assert served.client.get("/readyz").text == "silent\n"
