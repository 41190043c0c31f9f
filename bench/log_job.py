"""The second job of `pipelines`: logs are fetched, parsed, counted.

LogListed → `fetch_log` (waits for a server) → LogFetched → `parse_log` (unpacks, and matches each
line) → LogCounted → `store_log` (SQLite; in `log_set`). Workers import this module, so it is light.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from procbus import current

from .client import fetch

KINDS = 24  # of different logs; they are fetched in turn
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
