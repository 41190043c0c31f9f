"""The second job of `pipelines`: logs are fetched, parsed, counted.

LogListed → `fetch_log` (waits for a server) → LogFetched → `parse_log` (unpacks, and matches each
line) → LogCounted → `store_log` (SQLite). The server answers after 10 ms, as stores of objects do.
"""

from __future__ import annotations

import gzip
import random
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from procbus import current

from .io_work import fetch, server

LINES = 1_500  # of one log: some 7 ms of parsing
KINDS = 24  # of different logs; they are fetched in turn
ANSWER_S = 0.010
LINE = re.compile(
    r"(?P<host>\S+) - - \[(?P<day>[^:]+):(?P<time>[^\]]+)\] "
    r'"(?P<method>[A-Z]+) (?P<path>[^ ?]+)[^"]*" (?P<status>\d{3}) (?P<size>\d+)'
)


@dataclass(frozen=True)
class LogListed:
    """A log that the server has."""

    port: int
    number: int


@dataclass(frozen=True)
class LogFetched:
    """A log as it came, compressed."""

    number: int
    packed: bytes


@dataclass(frozen=True)
class LogCounted:
    """Requests and bytes of one log, by path and status."""

    number: int
    requests: Counter[tuple[str, str]]
    size: int


Publish = Callable[[object], object]


def publish_here(event: object) -> None:
    """Publish on the bus that runs the handler."""
    current().publish(event)


def fetch_log(log: LogListed, publish: Publish = publish_here) -> None:
    """Ask the server."""
    publish(LogFetched(log.number, fetch(log.port, log.number % KINDS)))


def parse_log(log: LogFetched, publish: Publish = publish_here) -> None:
    """Unpack, match every line, count."""
    publish(counted(log))


def counted(log: LogFetched) -> LogCounted:
    """Count one log."""
    requests: Counter[tuple[str, str]] = Counter()
    size = 0
    for line in gzip.decompress(log.packed).decode().splitlines():
        if found := LINE.match(line):
            requests[found["path"], found["status"]] += 1
            size += int(found["size"])
    return LogCounted(log.number, requests, size)


def fetch_and_count(log: LogListed) -> LogCounted:
    """Do everything except storing: the part for a pool of processes."""
    return counted(LogFetched(log.number, fetch(log.port, log.number % KINDS)))


class Store:
    """Totals in SQLite; a commit for each 50 logs. Any thread may call it; calls take turns."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.execute(
            "CREATE TABLE totals (path TEXT, status TEXT, requests INTEGER,"
            " PRIMARY KEY (path, status))"
        )
        self.logs = 0

    def store_log(self, log: LogCounted) -> None:
        """Add the counts of one log."""
        with self._lock:
            self._connection.executemany(
                "INSERT INTO totals VALUES (?, ?, ?) ON CONFLICT (path, status) "
                "DO UPDATE SET requests = requests + excluded.requests",
                [(*key, count) for key, count in log.requests.items()],
            )
            self.logs += 1
            if self.logs % 50 == 0:
                self._connection.commit()

    def requests(self) -> int:
        """Return how many requests were counted in all."""
        with self._lock:
            self._connection.commit()
            found = self._connection.execute("SELECT sum(requests) FROM totals").fetchone()
        return int(found[0] or 0)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def make_log(number: int) -> bytes:
    """Make one compressed log, the same each time."""
    choose = random.Random(number)
    lines = [
        f"10.0.{choose.randrange(256)}.{choose.randrange(256)} - - [25/Nov/2026:10:{n % 60:02}:07] "
        f'"GET /shop/{choose.randrange(300)}?id={n} HTTP/1.1" '
        f"{choose.choice((200, 200, 200, 304, 404, 500))} {choose.randrange(50_000)}"
        for n in range(LINES)
    ]
    return gzip.compress("\n".join(lines).encode(), 6)


@contextmanager
def log_server() -> Iterator[int]:
    """Run a server of logs; give its port."""
    with server([make_log(number) for number in range(KINDS)], ANSWER_S) as port:
        yield port
