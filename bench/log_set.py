"""The surroundings of the job with logs: the server, its logs, and the store of the counts.

The server answers after 10 ms, as stores of objects do.
"""

from __future__ import annotations

import gzip
import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .io_work import server
from .log_job import KINDS, LogCounted

LINES = 1_500  # of one log: some 7 ms of parsing
ANSWER_S = 0.010


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
