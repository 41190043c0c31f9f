"""A bus on Dask workers of several hosts, which are network namespaces of this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from procbus import DaskPool, EventBus
from tests.clusters import HAS_DASK, NO_DASK, Machines, warm_up
from tests.integration.helpers import Tally
from tests.waits import eventually

#: Time without an answer after which Dask gives a connection up: the minimum that it allows.
TCP_TIMEOUT = "12s"
#: Start of the addresses that the internet sets aside for tests of networks: 198.18.0.0/15.
ADDRESSES = IPv4Address("198.18.0.0")
BOUND_S = 120.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


class Host:
    """A network namespace, with a cable to this one that can be cut."""

    def __init__(self, number: int) -> None:
        self.name = f"procbus{os.getpid()}-{number}"
        self._cable = f"pb{os.getpid() % 100_000}n{number}"
        # A network of its own, also beside another run of the tests.
        network = ADDRESSES + 4 * (4 * (os.getpid() % 8_192) + number)
        self.here, self.there = str(network + 1), str(network + 2)
        ip("netns", "add", self.name)
        try:
            self._connect(number)
        except BaseException:
            self.close()
            raise

    def _connect(self, number: int) -> None:
        ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("addr", "add", f"{self.here}/30", "dev", self._cable)
        ip("link", "set", self._cable, "up")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")
        ip("-n", self.name, "addr", "add", f"{self.there}/30", "dev", "eth0")

    def cut_off(self) -> None:
        ip("link", "set", self._cable, "down")

    def close(self) -> None:
        ip("netns", "del", self.name)


def why_not() -> str:
    """Why no hosts can be made here; empty when they can."""
    if not HAS_DASK:
        return NO_DASK
    try:
        Host(3).close()
    except (OSError, subprocess.SubprocessError) as error:
        return f"no network namespaces here (they need root, and iproute2): {error}"
    return ""


WHY_NOT = why_not()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    with contextlib.ExitStack() as stack:
        made = []
        for number in (1, 2):
            made.append(Host(number))
            stack.callback(made[-1].close)
        yield made


@pytest.fixture(scope="module")
def machines(hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    import dask

    directory = tmp_path_factory.mktemp("hosts")
    with (
        dask.config.set({"distributed.comm.timeouts.tcp": TCP_TIMEOUT}),
        contextlib.closing(
            Machines(directory, DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=TCP_TIMEOUT)
        ) as machines,
    ):
        port = machines.address.rpartition(":")[2]
        for host in hosts:
            machines.start_worker(
                *("--host", host.there),
                address=f"tcp://{host.here}:{port}",
                within=["ip", "netns", "exec", host.name],
            )
        warm_up(machines.address)
        yield machines


def test_host_that_is_cut_off_repeats_only_its_deliveries_in_flight(
    hosts: list[Host], machines: Machines, tmp_path: Path
) -> None:
    tally = Tally(str(tmp_path / "tally"))

    def work(number: int) -> int:
        import time
        from pathlib import Path

        address = Path("/proc/net/fib_trie").read_text()
        tally.note(f"{number} {'cut' if hosts_cut in address else 'other'}")
        time.sleep(0.02)
        return number

    hosts_cut = hosts[1].there
    with EventBus(handlers=[], cpu=DaskPool(machines.address)) as bus:
        bus.subscribe("number", work, kind="cpu", retries=1, backoff=0.01)
        places: set[str] = set()
        while len(places) < 2:  # until both hosts have a process: one may need long to start
            receipts = [bus.publish("number", -1) for _ in range(20)]
            assert all(receipt.wait(BOUND_S) for receipt in receipts)
            places = {line.split()[1] for line in tally.lines()}
        receipts = [bus.publish("number", number) for number in range(1_000)]
        eventually(lambda: places == {line.split()[1] for line in tally.lines() if line[0] != "-"})
        hosts[1].cut_off()
        assert bus.drain(BOUND_S)

        results = [receipt.result() for receipt in receipts]
        attempts = [receipt.deliveries[0].attempts for receipt in receipts]

    assert results == list(range(1_000)), "nothing is lost"
    assert sum(attempts) - len(attempts) <= 1, "one delivery is charged at most"
    ran: dict[str, list[str]] = defaultdict(list)
    for number, where in (line.split() for line in tally.lines() if line[0] != "-"):
        ran[number].append(where)
    assert len(ran) == 1_000
    twice = [places for places in ran.values() if len(places) > 1]
    assert all(sorted(places) == ["cut", "other"] for places in twice), (
        "only what was in flight on the host that is cut off is done twice"
    )
