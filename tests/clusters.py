"""Dask clusters for tests, in other processes, so that no test is blamed for their files."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tests.processes import alive_after
from tests.waits import eventually

HAS_DASK = importlib.util.find_spec("distributed") is not None
NO_DASK = "Dask is not installed: pip install 'procbus[dask]'"
#: Maximum time for a process of Dask to carry out a request, in seconds.
BOUND_S = 60.0

_CLUSTER = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    workers, threads = map(int, sys.argv[1:])
    with LocalCluster(
        n_workers=workers, threads_per_worker=threads, dashboard_address=None
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@contextlib.contextmanager
def cluster(workers: int = 1, threads: int = 1) -> Iterator[str]:
    """A scheduler with workers; gives its address."""
    command = [sys.executable, "-c", _CLUSTER, str(workers), str(threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(BOUND_S)


def warm_up(address: str) -> None:
    """Have Dask start the things that it starts once in this process and keeps."""
    from distributed.utils import offload

    from procbus.pool.dask.pool import DaskPool

    pool = DaskPool(address).open(1, b"")
    pool.start(lambda _: None).stop()
    pool.close()
    asyncio.run(offload(int))


class Machines:
    """A scheduler and workers, each a process that may be killed, stopped and started again."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self._directory = directory
        self._environment = {**os.environ, **environment}
        self._stack = contextlib.ExitStack()
        self._started = 0
        self.address = ""
        self.scheduler = self.start_scheduler()

    def start_scheduler(self, port: int = 0) -> subprocess.Popen[bytes]:
        """Start a scheduler, and wait until it listens."""
        file = self._directory / f"scheduler{self._started}.json"
        process = self._start(
            "scheduler", "--port", str(port), "--no-dashboard", "--scheduler-file", str(file)
        )
        eventually(file.exists)
        eventually(lambda: bool(file.read_text()))
        self.address = json.loads(file.read_text())["address"]
        return process

    def start_worker(
        self, *options: str, address: str = "", within: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a nanny with a worker of one thread.

        Args:
            *options: of `dask worker`.
            address: address of the scheduler, if it is not the scheduler's own.
            within: a command that runs the one that follows it.
        """
        return self._start(
            *("worker", address or self.address, "--nthreads", "1", "--no-dashboard"),
            *("--local-directory", str(self._directory), "--death-timeout", "60", *options),
            within=within,
        )

    def _start(
        self, kind: str, *options: str, within: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        self._started += 1
        log = self._stack.enter_context((self._directory / f"{kind}{self._started}.log").open("wb"))
        process = subprocess.Popen(
            [*within, sys.executable, "-m", f"distributed.cli.dask_{kind}", *options],
            stdout=log,
            stderr=log,
            env=self._environment,
        )
        self._stack.callback(_end, process)
        return process

    def close(self) -> None:
        """End them all."""
        self._stack.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            # These end by themselves then, and clear up after the others.
            if not any("resource_tracker" in word for word in one.cmdline()):
                one.kill()
    alive_after(family, BOUND_S)
    process.wait(BOUND_S)


def parent_of(pid: int) -> psutil.Process:
    """The Dask worker that a worker process is under."""
    parent = psutil.Process(pid).parent()
    assert parent is not None
    return parent
